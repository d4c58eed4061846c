// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

// Every case of the gate has its test in test/gate, without nodes. Here is what only
// nodes can show.
var _ = Describe("A gated Deployment", Ordered, func() {
	onStackOfItsOwn(stack.Options{Webhooks: true})

	// gatedOn creates a Deployment with a Pod for each node, and waits until they serve.
	gatedOn := func(ctx context.Context, p *v1alpha1.ImagePrefetch, image string, strategy appsv1.DeploymentStrategyType) *appsv1.Deployment {
		GinkgoHelper()
		labels := map[string]string{"app": p.Name}
		replicas := int32(len(s.Cluster.Nodes()))
		d := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Annotations: map[string]string{v1alpha1.PrefetchAnnotation: p.Name}},
			Spec: appsv1.DeploymentSpec{
				Replicas: &replicas,
				Strategy: appsv1.DeploymentStrategy{Type: strategy},
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: labels},
					Spec: corev1.PodSpec{
						TerminationGracePeriodSeconds: new(int64),
						Containers:                    []corev1.Container{{Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent}},
					},
				},
			},
		}
		Expect(s.Client.Create(ctx, d)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(s.Client.Delete(ctx, d)).To(Succeed()) })
		Eventually(available(ctx, d)).Should(Equal(replicas))
		return d
	}

	DescribeTable("keeps its old Pods until the new images are on the nodes, and then starts without a pull",
		func(ctx SpecContext, name string, strategy appsv1.DeploymentStrategyType) {
			repository := "gate/" + name
			v1, _ := push(ctx, repository+":v1", name+" v1")
			image, err := images.Pause(ctx, images.Layers(name+" v2", 3, images.MiB)...)
			Expect(err).NotTo(HaveOccurred())
			layers, err := image.Layers()
			Expect(err).NotTo(HaveOccurred())
			v2, v2Digest := pushArtifact(repository+":v2", image)
			p := prefetch(ctx, name, imagesOf(v1))
			d := gatedOn(ctx, p, v1, strategy)
			old := podsOf(ctx, d, v1)
			Expect(old).To(HaveLen(3))

			By("bringing the new image, whose last layer does not come")
			resume := s.Upstream.Inject(upstream.Of(digestOf(layers[len(layers)-1])), 0, upstream.StallAfter(1000))
			before := p.DeepCopy()
			p.Spec.Images = append(p.Spec.Images, v1alpha1.ImageReference(v2))
			Expect(s.Client.Patch(ctx, p, client.MergeFrom(before))).To(Succeed())
			_, err = s.Cluster.Kubectl(ctx, "set", "image", "deployment/"+name, "main="+v2)
			Expect(err).NotTo(HaveOccurred())
			Eventually(func() []string { return events(ctx, d) }).Should(ContainElement(And(
				HavePrefix("WaitingForNodes: Held: "), ContainSubstring("of 3 nodes that its Pods can run on still lack "))))
			Eventually(func(g Gomega) {
				g.Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
				g.Expect(d.Status.ObservedGeneration).To(Equal(d.Generation))
			}).Should(Succeed())
			Expect(d.Spec.Paused).To(BeTrue())
			Expect(podsOf(ctx, d, v2)).To(BeEmpty())
			Expect(podsOf(ctx, d, v1)).To(ConsistOf(old), "the very same Pods serve")
			Expect(available(ctx, d)(Default)).To(BeEquivalentTo(3))

			By("letting the layer come")
			resume()
			Eventually(func() []corev1.PodPhase { return phases(ctx, d, v2) }).Should(HaveExactElements(corev1.PodRunning, corev1.PodRunning, corev1.PodRunning))
			Eventually(func() []string { return podsOf(ctx, d, v1) }).Should(BeEmpty())
			eventuallyReady(ctx, p)
			var list corev1.PodList
			Expect(s.Client.List(ctx, &list, client.InNamespace(d.Namespace), client.MatchingLabels(d.Spec.Selector.MatchLabels))).To(Succeed())
			for i := range list.Items {
				told := events(ctx, &list.Items[i])
				Expect(told).To(ContainElement(ContainSubstring(`Container image "` + v2 + `" already present on machine`)))
				Expect(told).NotTo(ContainElement(HavePrefix("Pulling:")))
			}
			for _, node := range s.Cluster.Nodes() {
				Expect(digestOn(ctx, node, v2)).To(Equal(v2Digest), node.Name)
			}
			for _, layer := range layers {
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
		d := gatedOn(ctx, p, v1, appsv1.RollingUpdateDeploymentStrategyType)

		_, err := s.Cluster.Kubectl(ctx, "annotate", "deployment/tolerant", "sluice.dev/on-timeout=Hold")
		Expect(err).NotTo(HaveOccurred())

		By("refusing a node, which has no mirror, the new image")
		failing := s.Cluster.Nodes()[2]
		failing.Mirror.Stop()
		DeferCleanup(func(ctx SpecContext) { Expect(failing.Mirror.Start(ctx)).To(Succeed()) })
		DeferCleanup(s.Upstream.Inject(upstream.All(upstream.In("gate/tolerant"), upstream.From(failing.IP)), 0, upstream.Answer(http.StatusForbidden)))
		before := p.DeepCopy()
		p.Spec.Images = append(p.Spec.Images, v1alpha1.ImageReference(v2))
		Expect(s.Client.Patch(ctx, p, client.MergeFrom(before))).To(Succeed())
		_, err = s.Cluster.Kubectl(ctx, "set", "image", "deployment/tolerant", "main="+v2)
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() []string { return events(ctx, d) }).Should(ContainElement(And(HavePrefix("PrefetchFailing: Held: "),
			ContainSubstring("1 of 3 nodes that its Pods can run on still lack "), HaveSuffix(" on "+failing.Name))))
		Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeTrue())
		Expect(podsOf(ctx, d, v2)).To(BeEmpty())

		By("allowing the failure")
		before = p.DeepCopy()
		p.Spec.FailureTolerance = ptr.To(intstr.FromInt32(1))
		Expect(s.Client.Patch(ctx, p, client.MergeFrom(before))).To(Succeed())
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
		d := gatedOn(ctx, p, name, appsv1.RollingUpdateDeploymentStrategyType)
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

// available reads how many Pods of a Deployment serve.
func available(ctx context.Context, d *appsv1.Deployment) func(Gomega) int32 {
	return func(g Gomega) int32 {
		g.Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
		return d.Status.AvailableReplicas
	}
}

// podsOf are the names of a Deployment's Pods that run an image and are to stay.
func podsOf(ctx context.Context, d *appsv1.Deployment, image string) []string {
	GinkgoHelper()
	var names []string
	for _, pod := range pods(ctx, d, image) {
		names = append(names, pod.Name)
	}
	return names
}

func phases(ctx context.Context, d *appsv1.Deployment, image string) []corev1.PodPhase {
	GinkgoHelper()
	var all []corev1.PodPhase
	for _, pod := range pods(ctx, d, image) {
		all = append(all, pod.Status.Phase)
	}
	return all
}

func pods(ctx context.Context, d *appsv1.Deployment, image string) []corev1.Pod {
	GinkgoHelper()
	var list corev1.PodList
	Expect(s.Client.List(ctx, &list, client.InNamespace(d.Namespace), client.MatchingLabels(d.Spec.Selector.MatchLabels))).To(Succeed())
	return slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
		return pod.Spec.Containers[0].Image != image || !pod.DeletionTimestamp.IsZero()
	})
}

// pinned reports whether the kubelet's garbage collection spares an image of a node.
func pinned(ctx context.Context, node *cluster.Node, name string) bool {
	GinkgoHelper()
	out, err := node.Ctr(ctx, "images", "list", "name=="+name)
	Expect(err).NotTo(HaveOccurred())
	return strings.Contains(out, "io.cri-containerd.pinned=pinned")
}
