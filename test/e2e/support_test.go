// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

// push puts a runnable image of several layers into the upstream registry under
// repository:tag, and returns the name that a user writes and its digest. The
// seed tells it from every other image.
func push(ctx context.Context, ref, seed string) (name, digest string) {
	GinkgoHelper()
	image, err := images.Pause(ctx, images.Layers(seed, 4, images.MiB)...)
	Expect(err).NotTo(HaveOccurred())
	return pushArtifact(ref, image)
}

func pushArtifact(ref string, artifact images.Artifact) (name, digest string) {
	GinkgoHelper()
	Expect(s.Push(ref, artifact)).To(Succeed())
	return stack.Registry + "/" + ref, digestOf(artifact)
}

func digestOf(artifact interface{ Digest() (v1.Hash, error) }) string {
	GinkgoHelper()
	hash, err := artifact.Digest()
	Expect(err).NotTo(HaveOccurred())
	return hash.String()
}

// prefetch applies an ImagePrefetch that goes with its spec.
func prefetch(ctx context.Context, name string, spec v1alpha1.ImagePrefetchSpec) *v1alpha1.ImagePrefetch {
	GinkgoHelper()
	return prefetchIn(ctx, "default", name, spec)
}

func prefetchIn(ctx context.Context, namespace, name string, spec v1alpha1.ImagePrefetchSpec) *v1alpha1.ImagePrefetch {
	GinkgoHelper()
	p := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
	Expect(s.Client.Create(ctx, p)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(s.Client.Delete(ctx, p))).To(Succeed())
	})
	return p
}

func imagesOf(names ...string) v1alpha1.ImagePrefetchSpec {
	spec := v1alpha1.ImagePrefetchSpec{}
	for _, name := range names {
		spec.Images = append(spec.Images, v1alpha1.ImageReference(name))
	}
	return spec
}

// notObservedYet is the reason of a Ready condition that is about an earlier generation.
const notObservedYet = "NotObservedYet"

// ready reads the prefetch again and returns its Ready condition if that is about
// the present generation.
func ready(ctx context.Context, p *v1alpha1.ImagePrefetch) func(Gomega) metav1.Condition {
	return func(g Gomega) metav1.Condition {
		g.Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
		condition := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		if condition == nil || condition.ObservedGeneration != p.Generation {
			return metav1.Condition{Reason: notObservedYet}
		}
		return *condition
	}
}

func eventuallyReady(ctx context.Context, p *v1alpha1.ImagePrefetch) {
	GinkgoHelper()
	Eventually(ready(ctx, p)).Should(HaveField("Status", metav1.ConditionTrue), func() string {
		return fmt.Sprintf("ImagePrefetch %s: %+v", p.Name, p.Status)
	})
}

// fetchedOnce reports whether each manifest and blob of an artifact was sent by the
// upstream registry exactly once and whole, and all of it to one node.
func fetchedOnce(repository string, artifact images.Artifact) {
	GinkgoHelper()
	requests := s.Upstream.Requests().Where(upstream.In(repository))
	var want []string
	Expect(images.Walk(artifact, func(b images.Blob) error {
		want = append(want, b.Digest.String())
		return nil
	})).To(Succeed())
	var got []string
	for _, tally := range requests.Tallies() {
		Expect(tally).To(And(HaveField("Complete", 1), HaveField("Partial", 0), HaveField("Refused", 0)))
		got = append(got, tally.Digest)
	}
	Expect(got).To(ConsistOf(want))
	Expect(requests.Clients()).To(HaveLen(1), "only the seed asks the upstream registry")
}

// digestOn is the digest of what a node has under a name, when its content is complete and
// unpacked; otherwise it says what is wrong with it. It is empty when there is nothing.
func digestOn(ctx context.Context, node *cluster.Node, name string) string {
	GinkgoHelper()
	found, err := node.Images(ctx, name)
	if err != nil {
		return err.Error()
	}
	image, ok := found[name]
	if !ok {
		return ""
	}
	return image.String()
}

// run starts a Pod on a node that never pulls more than it must, and waits until
// it runs; it returns the messages of the Pod's events.
func run(ctx context.Context, name string, node *cluster.Node, image string) {
	GinkgoHelper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{
			NodeName:                      node.Name,
			TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{
				Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
			}},
		},
	}
	Expect(s.Client.Create(ctx, pod)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(s.Client.Delete(ctx, pod)).To(Succeed()) })
	Eventually(func(g Gomega) corev1.PodPhase {
		g.Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
		return pod.Status.Phase
	}).Should(Equal(corev1.PodRunning), func() string { return strings.Join(events(ctx, pod), "\n") })
	Expect(events(ctx, pod)).To(ContainElement(ContainSubstring("already present on machine")))
}

// events are the messages of an object's events.
func events(ctx context.Context, object client.Object) []string {
	GinkgoHelper()
	var list corev1.EventList
	Expect(s.Client.List(ctx, &list, client.InNamespace(object.GetNamespace()))).To(Succeed())
	var messages []string
	for _, event := range list.Items {
		if event.InvolvedObject.UID == object.GetUID() {
			messages = append(messages, event.Reason+": "+event.Message)
		}
	}
	slices.Sort(messages)
	return messages
}

// seedOf is the node that the requests of a repository came from.
func seedOf(repository string) *cluster.Node {
	GinkgoHelper()
	clients := s.Upstream.Requests().Where(upstream.In(repository)).Clients()
	Expect(clients).To(HaveLen(1))
	return nodeAt(clients[0])
}

// addNode adds a node, with an agent, until the spec ends.
func addNode(ctx context.Context, opts cluster.NodeOptions) *cluster.Node {
	GinkgoHelper()
	node, err := s.AddNode(ctx, opts)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx SpecContext) {
		Expect(s.Cluster.RemoveNode(ctx, node)).To(Succeed())
		Expect(s.Client.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}})).To(Succeed())
	})
	return node
}

// on selects one node.
func on(node *cluster.Node) map[string]string {
	return map[string]string{corev1.LabelHostname: node.Name}
}
