// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/policy"
)

var _ = Describe("The policies of a namespace", func() {
	var nodes *agents
	BeforeEach(func() {
		nodes = runAgents()
		DeferCleanup(func(ctx SpecContext) { Expect(api.DeleteAllOf(ctx, &v1alpha1.PrefetchPolicy{})).To(Succeed()) })
	})
	createPolicy := func(ctx context.Context, selector map[string]string, repositories ...v1alpha1.RepositoryPattern) *v1alpha1.PrefetchPolicy {
		GinkgoHelper()
		object := &v1alpha1.PrefetchPolicy{ObjectMeta: metav1.ObjectMeta{Name: "tenants"}, Spec: v1alpha1.PrefetchPolicySpec{
			NamespaceSelector: metav1.LabelSelector{MatchLabels: selector}, AllowedRepositories: repositories}}
		Expect(api.Create(ctx, object)).To(Succeed())
		return object
	}
	denied := notReady(v1alpha1.ReasonPolicyDenied)

	It("stop the distribution of images that they no longer allow, and let it go on when they do again", func(ctx SpecContext) {
		createNodes(ctx, 3)
		start()
		prefetch := createPrefetch(ctx, "app")
		Eventually(statusOf(ctx, prefetch)).Should(beReady())
		pulls := nodes.upstream(digestOf(app, 1))

		By("adding a policy without the repository")
		object := createPolicy(ctx, nil, "ghcr.io/**")
		Eventually(statusOf(ctx, prefetch)).Should(And(denied, messageOf(v1alpha1.ConditionReady, And(
			ContainSubstring("spec.images[0]"), ContainSubstring(app), ContainSubstring("ghcr.io/**"), ContainSubstring(`PrefetchPolicy "tenants"`)))))
		Eventually(setOf(ctx, "node-1")).Should(BeEmpty(), "the nodes want nothing, so nothing is pulled or pinned")
		Eventually(eventsOn(ctx, prefetch)).Should(ContainElement("Warning PolicyDenied"))
		createNode(ctx, "node-4")
		const allowed = "ghcr.io/org/tool:v1"
		Eventually(statusOf(ctx, createPrefetch(ctx, "tool", ofImages(allowed)))).Should(And(beReady(), HaveField("ReadyNodes", BeEquivalentTo(4))))
		for _, node := range []string{"node-1", "node-2", "node-3", "node-4"} {
			Expect(setOf(ctx, node)(Default)).To(And(HaveLen(1), HaveKey(allowed)), "denied images come to no node, new or old, while others do")
		}
		Expect(nodes.upstream(digestOf(app, 1))).To(Equal(pulls))

		By("adding the repository")
		update(ctx, object, func(p *v1alpha1.PrefetchPolicy) {
			p.Spec.AllowedRepositories = append(p.Spec.AllowedRepositories, "registry.sluice.test/demo/*")
		})
		Eventually(statusOf(ctx, prefetch)).Should(beReady())
		Expect(nodes.upstream(digestOf(app, 1))).To(Equal(pulls), "the nodes still have the images")
	})

	It("change with the labels of the namespace", func(ctx SpecContext) {
		createNodes(ctx, 1)
		start()
		createPolicy(ctx, map[string]string{"trusted": "no"}, "ghcr.io/**")
		prefetch := createPrefetch(ctx, "app")
		Eventually(statusOf(ctx, prefetch)).Should(beReady())
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		label := func(ctx context.Context, value string) {
			update(ctx, namespace, func(n *corev1.Namespace) { metav1.SetMetaDataLabel(&n.ObjectMeta, "trusted", value) })
		}
		DeferCleanup(func(ctx SpecContext) { label(ctx, "yes") })
		label(ctx, "no")
		Eventually(statusOf(ctx, prefetch)).Should(denied)
		label(ctx, "yes")
		Eventually(statusOf(ctx, prefetch)).Should(beReady())
	})

	It("give way to the default where none selects the namespace, even if that is Deny", func(ctx SpecContext) {
		createNodes(ctx, 1)
		start(func(s *settings) { s.fallback = policy.DefaultDeny })
		prefetch := createPrefetch(ctx, "app")
		Eventually(statusOf(ctx, prefetch)).Should(And(denied, messageOf(v1alpha1.ConditionReady, ContainSubstring("no PrefetchPolicy selects"))))
		object := createPolicy(ctx, nil, "*/**")
		Eventually(statusOf(ctx, prefetch)).Should(beReady())
		Expect(client.IgnoreNotFound(api.Delete(ctx, object))).To(Succeed())
		Eventually(statusOf(ctx, prefetch)).Should(denied)
	})
})
