// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook_test

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func prefetchOf(namespace, name string, images ...v1alpha1.ImageReference) *v1alpha1.ImagePrefetch {
	return &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.ImagePrefetchSpec{Images: images}}
}

// allow has the tenants of a namespace prefetch from there, and waits until that counts.
func allow(ctx context.Context, namespace string, repositories ...v1alpha1.RepositoryPattern) *v1alpha1.PrefetchPolicy {
	GinkgoHelper()
	p := policyOf("for-"+namespace, v1alpha1.PrefetchPolicySpec{
		NamespaceSelector:   metav1.LabelSelector{MatchLabels: map[string]string{"tenant": namespace}},
		AllowedRepositories: repositories,
	})
	Expect(api.Create(ctx, p)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(api.Delete(ctx, p))).To(Succeed()) })
	Eventually(func() error {
		return api.Create(ctx, prefetchOf(namespace, "probe", "registry.example.com/never"), client.DryRunAll)
	}).Should(MatchError(ContainSubstring(string(repositories[0]))))
	return p
}

var _ = Describe("ImagePrefetch webhook", func() {
	It("says everything that is forbidden at once, with its field, what is allowed and whom to ask", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		allow(ctx, namespace, "ghcr.io/org/**")
		err := api.Create(ctx, prefetchOf(namespace, "app", "ghcr.io/org/app:v1", "nginx", "ghcr.io/org-evil/app", "ghcr.io.evil.com/org/app"))
		Expect(apierrors.IsInvalid(err)).To(BeTrue(), "%v", err)
		Expect(err).To(MatchError(And(
			ContainSubstring(`ImagePrefetch.sluice.dev "app" is invalid`),
			ContainSubstring(`spec.images[1]: Forbidden: image "nginx"`),
			ContainSubstring("spec.images[2]"), ContainSubstring("spec.images[3]"),
			ContainSubstring("ghcr.io/org/**"), ContainSubstring(`ask an administrator of the cluster about PrefetchPolicy "for-`+namespace),
			Not(ContainSubstring("spec.images[0]")))))
	})

	It("admits what is allowed, also in a namespace that was created a moment ago", func(ctx SpecContext) {
		Expect(api.Create(ctx, policyOf("for-everyone", v1alpha1.PrefetchPolicySpec{AllowedRepositories: []v1alpha1.RepositoryPattern{"ghcr.io/org/**"}}))).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(api.Delete(ctx, policyOf("for-everyone", v1alpha1.PrefetchPolicySpec{}))).To(Succeed())
		})
		Eventually(func() error {
			return api.Create(ctx, prefetchOf("default", "probe", "ghcr.io/org/app"), client.DryRunAll)
		}).Should(Succeed())
		for range 20 {
			namespace := newNamespace(ctx)
			Expect(api.Create(ctx, prefetchOf(namespace, "app", "ghcr.io/org/app:v1"))).To(Succeed())
		}
	})

	It("denies by default where no policy selects the namespace", func(ctx SpecContext) {
		Expect(api.Create(ctx, prefetchOf(newNamespace(ctx), "app", "nginx"))).To(MatchError(ContainSubstring("no PrefetchPolicy selects namespace")))
	})

	It("does not stand in the way of an update that changes nothing a policy speaks of", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		p := allow(ctx, namespace, "ghcr.io/org/**")
		stored := prefetchOf(namespace, "app", "ghcr.io/org/app:v1", "ghcr.io/org/other:v1")
		stored.Finalizers = []string{"example.com/hold"}
		Expect(api.Create(ctx, stored)).To(Succeed())
		p.Spec.AllowedRepositories = []v1alpha1.RepositoryPattern{"quay.io/**"}
		Expect(api.Update(ctx, p)).To(Succeed())
		Eventually(func() error {
			return api.Create(ctx, prefetchOf(namespace, "probe", "ghcr.io/org/app:v1"), client.DryRunAll)
		}).ShouldNot(Succeed())

		By("rejecting other images, and another number of nodes")
		images := stored.DeepCopy()
		images.Spec.Images = append(images.Spec.Images, "ghcr.io/org/third:v1")
		Expect(apierrors.IsInvalid(api.Update(ctx, images))).To(BeTrue())
		replicas := stored.DeepCopy()
		replicas.Spec.Replicas = ptr.To[int32](2)
		Expect(apierrors.IsInvalid(api.Update(ctx, replicas))).To(BeTrue())

		By("letting everything else through")
		stored.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		stored.Spec.Images[0], stored.Spec.Images[1] = stored.Spec.Images[1], stored.Spec.Images[0] // the same set
		stored.Annotations = map[string]string{v1alpha1.RefreshAnnotation: "1"}
		Expect(api.Update(ctx, stored)).To(Succeed())
		stored.Status.DesiredNodes = 1
		Expect(controller.Status().Update(ctx, stored)).To(Succeed())
		Expect(api.Delete(ctx, stored)).To(Succeed())
		Expect(api.Get(ctx, client.ObjectKeyFromObject(stored), stored)).To(Succeed())
		stored.Finalizers = nil
		Expect(api.Update(ctx, stored)).To(Succeed())
		Expect(api.Get(ctx, client.ObjectKeyFromObject(stored), stored)).To(MatchError(apierrors.IsNotFound, "is gone"))
	})
})

var _ = Describe("PrefetchPolicy webhook", func() {
	It("rejects patterns that cannot match, are ambiguous or do not parse, all at once", func(ctx SpecContext) {
		err := api.Create(ctx, policyOf("bad", v1alpha1.PrefetchPolicySpec{
			AllowedRepositories: []v1alpha1.RepositoryPattern{"ghcr.io/org/**", "nginx", "docker.io/nginx"},
			DeniedRepositories:  []v1alpha1.RepositoryPattern{"ghcr.io/org/app:v1"},
		}))
		Expect(apierrors.IsInvalid(err)).To(BeTrue(), "%v", err)
		Expect(err).To(MatchError(And(
			ContainSubstring(`spec.allowedRepositories[1]: Invalid value: "nginx": is ambiguous: name the registry, such as "docker.io/library/nginx"`),
			ContainSubstring("spec.allowedRepositories[2]"), ContainSubstring("spec.deniedRepositories[0]"))))
	})

	It("admits good ones, and warns of one that allows nothing", func(ctx SpecContext) {
		var warnings []string
		config := as("admin", "system:masters")
		config.WarningHandler = warningsTo(&warnings)
		warned := clientFor(config)
		Expect(warned.Create(ctx, policyOf("good", v1alpha1.PrefetchPolicySpec{AllowedRepositories: []v1alpha1.RepositoryPattern{"*.example.com:5000/**"}}), client.DryRunAll)).To(Succeed())
		Expect(warnings).To(BeEmpty())
		Expect(warned.Create(ctx, policyOf("empty", v1alpha1.PrefetchPolicySpec{}), client.DryRunAll)).To(Succeed())
		Expect(warnings).To(ConsistOf(ContainSubstring("allowedRepositories is empty")))
	})
})

var _ = Describe("NodeImageSet", func() {
	It("has its spec written by the controller only", func(ctx SpecContext) {
		object := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "node-1"}}
		Expect(stranger.Create(ctx, object.DeepCopy())).To(And(Satisfy(apierrors.IsForbidden), MatchError(ContainSubstring("create an ImagePrefetch"))))
		Expect(controller.Create(ctx, object)).To(Succeed())

		changed := object.DeepCopy()
		changed.Spec.ImageSet = []v1alpha1.NodeImage{{Name: "docker.io/library/nginx:latest"}}
		Expect(stranger.Update(ctx, changed.DeepCopy())).To(MatchError(ContainSubstring("not stranger")))
		Expect(controller.Update(ctx, changed)).To(Succeed())

		By("leaving the rest to whom it belongs")
		changed.Labels = map[string]string{"example.com/seen": "true"}
		Expect(stranger.Update(ctx, changed)).To(Succeed())
		changed.Status.ObservedGeneration = 2
		Expect(stranger.Status().Update(ctx, changed)).To(Succeed())
		Expect(stranger.Delete(ctx, changed)).To(Succeed())
	})
})

var _ = Describe("The rights of the controller", func() {
	It("are enough for what the webhooks read", func(ctx SpecContext) {
		Expect(controller.List(ctx, &v1alpha1.PrefetchPolicyList{})).To(Succeed())
		Expect(controller.List(ctx, &corev1.NamespaceList{})).To(Succeed())
		Expect(controller.List(ctx, &corev1.SecretList{})).To(MatchError(apierrors.IsForbidden, "is forbidden"))
	})
})
