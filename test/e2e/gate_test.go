// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/http"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

// Every case of the gate has its test in test/gate, without nodes. Here is what only
// nodes can show.
var _ = Describe("A gated Deployment", Ordered, func() {
	onStackOfItsOwn(stack.Options{Webhooks: true})

	DescribeTable("keeps its old Pods until the new images are on the nodes, and then starts without a pull",
		func(ctx SpecContext, name string, strategy appsv1.DeploymentStrategyType) {
			repository := "gate/" + name
			v1, _ := push(ctx, repository+":v1", name+" v1")
			v2 := pushUnfinished(ctx, repository+":v2", name+" v2")
			p := prefetch(ctx, name, imagesOf(v1))
			d := gatedOn(ctx, p, v1, func(d *appsv1.Deployment) { d.Spec.Strategy.Type = strategy })
			old := podsOf(ctx, d, v1)
			Expect(old).To(HaveLen(3))

			By("bringing the new image, of which a layer does not come")
			bring(ctx, p, v2.name)
			setImage(ctx, d, v2.name)
			Eventually(func() []string { return events(ctx, d) }).Should(ContainElement(And(
				HavePrefix("WaitingForNodes: Held: "), ContainSubstring("of 3 nodes that its Pods can run on still lack "))))
			expectHeld(ctx, d)
			Expect(podsOf(ctx, d, v1)).To(ConsistOf(old), "the very same Pods serve")
			Expect(available(ctx, d)(Default)).To(BeEquivalentTo(3))

			By("letting the layer come")
			v2.finish()
			eventuallyRuns(ctx, d, v2.name)
			expectStartedWithoutPull(ctx, d)
			eventuallyReady(ctx, p)
			for _, node := range s.Cluster.Nodes() {
				Expect(digestOn(ctx, node, v2.name)).To(Equal(v2.digest), node.Name)
			}
			for _, layer := range v2.layers {
				Expect(s.Upstream.Requests().Where(upstream.Of(digestOf(layer))).Clients()).To(HaveLen(1), "from upstream only to the seed")
			}
		},
		Entry("with RollingUpdate", "rolling", appsv1.RollingUpdateDeploymentStrategyType),
		Entry("with Recreate", "recreate", appsv1.RecreateDeploymentStrategyType),
	)

	It("is held for a failed node with on-timeout Hold, and released once the failure is allowed", func(ctx SpecContext) {
		v1, _ := push(ctx, "gate/tolerant:v1", "tolerant v1")
		v2, digest := push(ctx, "gate/tolerant:v2", "tolerant v2")
		spec := imagesOf(v1)
		spec.ImageDownloadRetryLimit = new(int32) // a node that fails has tried long enough
		p := prefetch(ctx, "tolerant", spec)
		d := gatedOn(ctx, p, v1)

		kubectl(ctx, "", "annotate", "deployment/tolerant", "sluice.dev/on-timeout=Hold")

		By("refusing a node, which has no mirror, the new image")
		failing := s.Cluster.Nodes()[2]
		failing.Mirror.Stop()
		DeferCleanup(func(ctx SpecContext) { Expect(failing.Mirror.Start(ctx)).To(Succeed()) })
		DeferCleanup(s.Upstream.Inject(upstream.All(upstream.In("gate/tolerant"), upstream.From(failing.IP)), 0, upstream.Answer(http.StatusForbidden)))
		bring(ctx, p, v2)
		setImage(ctx, d, v2)
		Eventually(func() []string { return events(ctx, d) }).Should(ContainElement(And(HavePrefix("PrefetchFailing: Held: "),
			ContainSubstring("1 of 3 nodes that its Pods can run on still lack "), ContainSubstring("; 1 failed, such as "+failing.Name+": "))))
		expectHeld(ctx, d)

		By("allowing the failure")
		edit(ctx, p, func(spec *v1alpha1.ImagePrefetchSpec) { spec.FailureTolerance = ptr.To(intstr.FromInt32(1)) })
		eventuallyReady(ctx, p)
		Expect(p.Status.FailedNodes).To(BeEquivalentTo(1))
		Eventually(func(g Gomega) {
			g.Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
			g.Expect(d.Spec.Paused).To(BeFalse())
			g.Expect(podsOf(ctx, d, v2)).NotTo(BeEmpty())
		}).Should(Succeed())
		for _, node := range s.Cluster.Nodes()[:2] {
			Expect(digestOn(ctx, node, v2)).To(Equal(digest), node.Name)
		}
		Expect(digestOn(ctx, failing, v2)).To(BeEmpty())
	})

	It("loses neither images nor Pods when a policy no longer admits them, but the pins", func(ctx SpecContext) {
		name, digest := push(ctx, "gate/policy:v1", "policy v1")
		p := prefetch(ctx, "policy", imagesOf(name))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, name)
		node := s.Cluster.Nodes()[0]
		Expect(pinned(ctx, node, name)).To(BeTrue())

		denial := &v1alpha1.PrefetchPolicy{ObjectMeta: metav1.ObjectMeta{Name: "others"},
			Spec: v1alpha1.PrefetchPolicySpec{AllowedRepositories: []v1alpha1.RepositoryPattern{"ghcr.io/**"}}}
		Expect(s.Client.Create(ctx, denial)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(s.Client.Delete(ctx, denial)).To(Succeed()) })
		Eventually(ready(ctx, p)).Should(And(HaveField("Reason", v1alpha1.ReasonPolicyDenied), HaveField("Message", ContainSubstring(name))))
		Eventually(func() bool { return pinned(ctx, node, name) }).Should(BeFalse())
		Expect(digestOn(ctx, node, name)).To(Equal(digest))
		Expect(available(ctx, d)(Default)).To(BeEquivalentTo(3))
	})
})

// pinned reports whether the kubelet's garbage collection spares an image of a node.
func pinned(ctx context.Context, node *cluster.Node, name string) bool {
	GinkgoHelper()
	out, err := node.Ctr(ctx, "images", "list", "name=="+name)
	Expect(err).NotTo(HaveOccurred())
	return strings.Contains(out, "io.cri-containerd.pinned=pinned")
}
