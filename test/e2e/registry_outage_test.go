// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("With the registry cut off", Ordered, ContinueOnFailure, func() {
	onStackOfItsOwn(stack.Options{Webhooks: true})

	var (
		edited, later   *v1alpha1.ImagePrefetch
		name, digest    string             // of what later brings
		d               *appsv1.Deployment // has rolled out v1, and then v2
		v1, v2, rolling string
	)

	BeforeAll(func(ctx SpecContext) {
		a, _ := push(ctx, "cut/a:v1", "cut a")
		b, _ := push(ctx, "cut/b:v1", "cut b")
		push(ctx, "library/cut:v1", "cut hub")
		secret := pullSecret(ctx, "cut", entryOf(stack.Registry, "unused"))
		edited = prefetch(ctx, "edited", withSecrets(imagesOf(a, b, "cut:v1"), secret.Name))

		name, digest = push(ctx, "cut/later:v1", "cut later")
		later = prefetch(ctx, "later", imagesOf(name))

		rolling = "rolling"
		v1, _ = push(ctx, "cut/rolling:v1", "cut v1")
		v2, _ = push(ctx, "cut/rolling:v2", "cut v2")
		d = &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: rolling}}
		for _, image := range []string{v1, v2} {
			kubectl(ctx, manifests(rolling, image), "apply", "-f", "-")
			eventuallyRuns(ctx, d, image)
		}
		eventuallyReady(ctx, edited)
		eventuallyReady(ctx, later)

		Expect(s.Upstream.CutOff(upstream.Refuse)).To(Succeed())
	})

	It("a rollback passes at once, whatever the ImagePrefetch lists, and its Pods start", func(ctx SpecContext) {
		By("setting the image")
		Expect(setImage(ctx, d, v1)).NotTo(ContainSubstring("held"))
		eventuallyRuns(ctx, d, v1)
		expectStartedWithoutPull(ctx, d)

		By("undoing that")
		Expect(kubectl(ctx, "", "rollout", "undo", "deployment/"+rolling)).NotTo(ContainSubstring("held"))
		eventuallyRuns(ctx, d, v2)
		expectStartedWithoutPull(ctx, d)

		By("applying the old manifest together with that of the ImagePrefetch")
		Expect(kubectl(ctx, manifests(rolling, v1), "apply", "-f", "-")).NotTo(ContainSubstring("held"))
		eventuallyRuns(ctx, d, v1)
		expectStartedWithoutPull(ctx, d)
	})

	It("an image that is added and cannot be had delays nobody who does not use it, and is taken out again", func(ctx SpecContext) {
		bring(ctx, later, stack.Registry+"/cut/never:v1")
		Eventually(ready(ctx, later)).Should(HaveField("Status", metav1.ConditionFalse))
		Expect(later.Status.Images).To(ContainElement(And(HaveField("Name", name), HaveField("Digest", digest), HaveField("ReadyNodes", BeEquivalentTo(3)))))
		gatedOn(ctx, later, name)

		edit(ctx, later, func(spec *v1alpha1.ImagePrefetchSpec) { spec.Images = spec.Images[:1] })
		eventuallyReadyOn(ctx, later, 3)
	})

	DescribeTable("an edit of an ImagePrefetch that adds neither an image nor a secret leaves it Ready",
		func(ctx SpecContext, change func(*v1alpha1.ImagePrefetchSpec)) {
			Expect(ready(ctx, edited)(Default).Status).To(Equal(metav1.ConditionTrue))
			before := edited.DeepCopy()
			edit(ctx, edited, change)
			Expect(edited.Generation).To(Equal(before.Generation + 1))
			eventuallyReady(ctx, edited)
			Expect(readyStates(ctx, before, edited)).To(HaveEach(metav1.ConditionTrue))
		},
		Entry("another failureTolerance", func(spec *v1alpha1.ImagePrefetchSpec) { spec.FailureTolerance = ptr.To(intstr.FromInt32(1)) }),
		Entry("another imageDownloadRetryLimit", func(spec *v1alpha1.ImagePrefetchSpec) { spec.ImageDownloadRetryLimit = ptr.To(int32(1)) }),
		Entry("another retention", func(spec *v1alpha1.ImagePrefetchSpec) { spec.Retention = v1alpha1.RetentionBestEffort }),
		Entry("another order of the images", func(spec *v1alpha1.ImagePrefetchSpec) { slices.Reverse(spec.Images) }),
		Entry("an image written in full", func(spec *v1alpha1.ImagePrefetchSpec) { spec.Images[0] = "docker.io/library/cut:v1" }),
		Entry("an image less", func(spec *v1alpha1.ImagePrefetchSpec) { spec.Images = spec.Images[:2] }),
		Entry("a secret less", func(spec *v1alpha1.ImagePrefetchSpec) { spec.ImagePullSecrets = nil }),
		Entry("fewer nodes, by a nodeSelector", func(spec *v1alpha1.ImagePrefetchSpec) { spec.NodeSelector = on(s.Cluster.Nodes()[0]) }),
		Entry("more nodes", func(spec *v1alpha1.ImagePrefetchSpec) { spec.NodeSelector = nil }),
		Entry("fewer nodes, by replicas", func(spec *v1alpha1.ImagePrefetchSpec) { spec.Replicas = ptr.To(int32(2)) }),
		Entry("more replicas", func(spec *v1alpha1.ImagePrefetchSpec) { spec.Replicas = nil }),
		Entry("more tolerations", func(spec *v1alpha1.ImagePrefetchSpec) {
			spec.Tolerations = []corev1.Toleration{{Key: "team", Operator: corev1.TolerationOpExists}}
		}),
	)

	It("an ImagePrefetch that selects other nodes alone is Ready again when their peers have served them", func(ctx SpecContext) {
		for _, node := range s.Cluster.Nodes() {
			edit(ctx, edited, func(spec *v1alpha1.ImagePrefetchSpec) { spec.NodeSelector = on(node) })
			eventuallyReadyOn(ctx, edited, 1)
		}
	})

	DescribeTable("a node that joins gets from its peers what they have, and the ImagePrefetch stays Ready",
		func(ctx SpecContext, outage upstream.Outage) {
			Expect(s.Upstream.Restore()).To(Succeed())
			Expect(s.Upstream.CutOff(outage)).To(Succeed())
			eventuallyReadyOn(ctx, later, 3)
			before := later.DeepCopy()

			node := addNode(ctx, cluster.NodeOptions{})
			eventuallyReadyOn(ctx, later, 4)
			Expect(readyStates(ctx, before, later)).To(HaveEach(metav1.ConditionTrue))
			Expect(digestOn(ctx, node, name)).To(Equal(digest))
			Expect(imageStatus(ctx, node, name).Source).To(Equal(v1alpha1.SourceMirror))
			run(ctx, "joined-"+node.Name, node, name)
		},
		Entry("while it refuses connections", upstream.Refuse),
		Entry("while it answers nothing", upstream.Hang),
	)
})

// eventuallyReadyOn waits until a prefetch is Ready, and all of so many nodes have its images.
func eventuallyReadyOn(ctx context.Context, p *v1alpha1.ImagePrefetch, nodes int32) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(ready(ctx, p)(g).Status).To(Equal(metav1.ConditionTrue))
		g.Expect(p.Status).To(And(HaveField("DesiredNodes", nodes), HaveField("ReadyNodes", nodes)))
	}).Should(Succeed(), func() string { return fmt.Sprintf("%+v", p.Status) })
}

// manifests are those of an ImagePrefetch with one image and of a Deployment that waits for it.
func manifests(name, image string) string {
	return fmt.Sprintf(`apiVersion: sluice.dev/v1alpha1
kind: ImagePrefetch
metadata: {name: %[1]s}
spec: {images: ["%[2]s"]}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: %[1]s
  annotations: {sluice.dev/prefetch: %[1]s}
spec:
  replicas: 3
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: "%[2]s", imagePullPolicy: IfNotPresent}]
`, name, image)
}

// readyStates are those of the Ready condition from one version of a prefetch to a later one, as
// a watch tells them: none of them is missed.
func readyStates(ctx context.Context, from, to *v1alpha1.ImagePrefetch) []metav1.ConditionStatus {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	changes, err := s.Client.Watch(ctx, &v1alpha1.ImagePrefetchList{}, &client.ListOptions{
		Namespace: from.Namespace, FieldSelector: fields.OneTermEqualSelector("metadata.name", from.Name),
		Raw: &metav1.ListOptions{ResourceVersion: from.ResourceVersion},
	})
	Expect(err).NotTo(HaveOccurred())
	defer changes.Stop()
	var states []metav1.ConditionStatus
	for change := range changes.ResultChan() {
		p, ok := change.Object.(*v1alpha1.ImagePrefetch)
		Expect(ok).To(BeTrue(), "%s: %v", change.Type, change.Object)
		if condition := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); condition != nil {
			states = append(states, condition.Status)
		}
		if p.ResourceVersion == to.ResourceVersion {
			return states
		}
	}
	Fail("the watch has ended before it told of version " + to.ResourceVersion)
	return nil
}
