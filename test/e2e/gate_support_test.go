// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// gated creates a Deployment that names a prefetch and is called after it. It has a Pod
// for each node unless an edit says otherwise.
func gated(ctx context.Context, p *v1alpha1.ImagePrefetch, image string, edits ...func(*appsv1.Deployment)) *appsv1.Deployment {
	GinkgoHelper()
	labels := map[string]string{"app": p.Name}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Annotations: map[string]string{v1alpha1.PrefetchAnnotation: p.Name}},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(int32(len(s.Cluster.Nodes()))),
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
	for _, edit := range edits {
		edit(d)
	}
	Expect(s.Client.Create(ctx, d)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(s.Client.Delete(ctx, d)).To(Succeed()) })
	return d
}

// gatedOn creates a Deployment as gated does, and waits until its Pods serve.
func gatedOn(ctx context.Context, p *v1alpha1.ImagePrefetch, image string, edits ...func(*appsv1.Deployment)) *appsv1.Deployment {
	GinkgoHelper()
	d := gated(ctx, p, image, edits...)
	Eventually(available(ctx, d)).Should(Equal(*d.Spec.Replicas))
	return d
}

// withoutEnd has a rollout held whatever happens.
func withoutEnd(d *appsv1.Deployment) { d.Annotations[v1alpha1.OnTimeoutAnnotation] = "Hold" }

// edit changes the spec of a prefetch.
func edit(ctx context.Context, p *v1alpha1.ImagePrefetch, change func(*v1alpha1.ImagePrefetchSpec)) {
	GinkgoHelper()
	before := p.DeepCopy()
	change(&p.Spec)
	Expect(s.Client.Patch(ctx, p, client.MergeFrom(before))).To(Succeed())
}

// bring adds images to those of a prefetch, and waits until they are planned: what a hold then
// says has numbers.
func bring(ctx context.Context, p *v1alpha1.ImagePrefetch, names ...string) {
	GinkgoHelper()
	edit(ctx, p, func(spec *v1alpha1.ImagePrefetchSpec) {
		spec.Images = append(spec.Images, imagesOf(names...).Images...)
	})
}

// kubectl runs it with input on its standard input, expects success, and returns both outputs.
func kubectl(ctx context.Context, input string, args ...string) string {
	GinkgoHelper()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, s.Cluster.KubectlPath(), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Cluster.Kubeconfig())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	Expect(cmd.Run()).To(Succeed(), out.String)
	return out.String()
}

// setImage has the Deployment's container run another image, and returns what kubectl says.
func setImage(ctx context.Context, d *appsv1.Deployment, image string, flags ...string) string {
	GinkgoHelper()
	return kubectl(ctx, "", append([]string{"set", "image", "deployment/" + d.Name, "main=" + image}, flags...)...)
}

// unfinished is an image of which a layer stops on its way until finish is called.
type unfinished struct {
	name, digest string
	layers       []v1.Layer
	finish       func()
}

func pushUnfinished(ctx context.Context, ref, seed string) unfinished {
	GinkgoHelper()
	image, err := images.Pause(ctx, images.Layers(seed, 3, images.MiB)...)
	Expect(err).NotTo(HaveOccurred())
	layers, err := image.Layers()
	Expect(err).NotTo(HaveOccurred())
	name, digest := pushArtifact(ref, image)
	// Not the last one: it has the program, which the nodes have of other images.
	finish := s.Upstream.Inject(upstream.Of(digestOf(layers[0])), 0, upstream.StallAfter(1000))
	DeferCleanup(finish)
	return unfinished{name, digest, layers, finish}
}

// expectHeld expects that the Deployment is held, and once the Deployment controller has seen that,
// no Pod of the held version.
func expectHeld(ctx context.Context, d *appsv1.Deployment) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(s.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
		g.Expect(d.Status.ObservedGeneration).To(Equal(d.Generation))
	}).Should(Succeed())
	Expect(d.Spec.Paused).To(BeTrue(), "is paused")
	Expect(d.Labels).To(HaveKey(v1alpha1.HoldLabel))
	Expect(podsOf(ctx, d, d.Spec.Template.Spec.Containers[0].Image)).To(BeEmpty())
}

// eventuallyRuns waits until all Pods of a Deployment run an image, and no others are left.
func eventuallyRuns(ctx context.Context, d *appsv1.Deployment, image string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(available(ctx, d)(g)).To(Equal(*d.Spec.Replicas))
		var images []string
		for _, pod := range pods(ctx, d) {
			images = append(images, pod.Spec.Containers[0].Image)
			g.Expect(pod.Status.Phase).To(Equal(corev1.PodRunning))
		}
		g.Expect(images).To(And(HaveLen(int(*d.Spec.Replicas)), HaveEach(image)))
	}).Should(Succeed(), func() string {
		var told []string
		for _, pod := range pods(ctx, d) {
			told = append(told, events(ctx, &pod)...)
		}
		return strings.Join(append(told, events(ctx, d)...), "\n")
	})
}

// expectStartedWithoutPull expects of each Pod that the kubelet found its image on the node.
func expectStartedWithoutPull(ctx context.Context, d *appsv1.Deployment) {
	GinkgoHelper()
	for _, pod := range pods(ctx, d) {
		told := events(ctx, &pod)
		Expect(told).To(ContainElement(ContainSubstring(`Container image "` + pod.Spec.Containers[0].Image + `" already present on machine`)))
		Expect(told).NotTo(ContainElement(HavePrefix("Pulling:")))
	}
}

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
	for _, pod := range pods(ctx, d) {
		if pod.Spec.Containers[0].Image == image {
			names = append(names, pod.Name)
		}
	}
	return names
}

// pods are a Deployment's Pods that are to stay.
func pods(ctx context.Context, d *appsv1.Deployment) []corev1.Pod {
	GinkgoHelper()
	var list corev1.PodList
	Expect(s.Client.List(ctx, &list, client.InNamespace(d.Namespace), client.MatchingLabels(d.Spec.Selector.MatchLabels))).To(Succeed())
	return slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool { return !pod.DeletionTimestamp.IsZero() })
}
