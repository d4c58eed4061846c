// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/internal/scheduling"
)

const (
	imageA = "ghcr.io/org/app:a"
	imageB = "ghcr.io/org/app:b"
	imageC = "ghcr.io/org/app:c"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func hashOf(images ...string) string {
	return ImagesOf(&corev1.PodSpec{Containers: containers(images...)}).Hash()
}

func containers(images ...string) []corev1.Container {
	var all []corev1.Container
	for _, image := range images {
		all = append(all, corev1.Container{Name: "c", Image: image, ImagePullPolicy: corev1.PullIfNotPresent})
	}
	return all
}

type edit func(*appsv1.Deployment)

// deployment is gated by the prefetch "app" and runs imageA, which was let through.
func deployment(edits ...edit) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{
		Namespace: "team-a", Name: "app",
		Annotations: map[string]string{v1alpha1.PrefetchAnnotation: "app", v1alpha1.ReleasedAnnotation: hashOf(imageA)},
	}}
	d.Spec.Template.Spec.Containers = containers(imageA)
	return with(d, edits...)
}

// with is a changed copy.
func with(d *appsv1.Deployment, edits ...edit) *appsv1.Deployment {
	if d == nil {
		return nil
	}
	d = d.DeepCopy()
	for _, edit := range edits {
		edit(d)
	}
	return d
}

func runs(images ...string) edit {
	return func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers = containers(images...) }
}

func paused(is bool) edit { return func(d *appsv1.Deployment) { d.Spec.Paused = is } }

func annotate(key, value string) edit {
	return func(d *appsv1.Deployment) { metav1.SetMetaDataAnnotation(&d.ObjectMeta, key, value) }
}

func dropAnnotation(key string) edit {
	return func(d *appsv1.Deployment) { delete(d.Annotations, key) }
}

func label(value string) edit {
	return func(d *appsv1.Deployment) { metav1.SetMetaDataLabel(&d.ObjectMeta, v1alpha1.HoldLabel, value) }
}

func dropLabel(d *appsv1.Deployment) { delete(d.Labels, v1alpha1.HoldLabel) }

func environment(value string) edit {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", Value: value}}
	}
}

// held is held for what it runs since a time before now.
func held(since time.Duration) edit {
	return func(d *appsv1.Deployment) {
		hash := ImagesOf(&d.Spec.Template.Spec).Hash()
		paused(true)(d)
		label(hash)(d)
		annotate(v1alpha1.HeldAtAnnotation, now.Add(-since).Format(time.RFC3339))(d)
	}
}

// replaced is what kubectl replace with a manifest without our keys leaves.
func replaced(d *appsv1.Deployment) {
	paused(false)(d)
	dropLabel(d)
	dropAnnotation(v1alpha1.HeldAtAnnotation)(d)
	dropAnnotation(v1alpha1.ReleasedAnnotation)(d)
}

// overwritten is what a program leaves that puts its own labels and annotations in the place
// of all others, and everything else back as it read it.
func overwritten(d *appsv1.Deployment) {
	d.Labels = map[string]string{"app": "x"}
	d.Annotations = map[string]string{v1alpha1.PrefetchAnnotation: "app"}
}

// ownedBy has a server-side applier own spec.paused.
func ownedBy(manager string) edit {
	return func(d *appsv1.Deployment) {
		d.ManagedFields = append(d.ManagedFields, metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationApply,
			FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:paused":{},"f:replicas":{}}}`)})
	}
}

// optsOutAndPauses has a server-side applier own spec.paused and the way out.
func optsOutAndPauses(d *appsv1.Deployment) {
	d.ManagedFields = append(d.ManagedFields, metav1.ManagedFieldsEntry{Manager: "team", Operation: metav1.ManagedFieldsOperationApply,
		FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{"f:sluice.dev/gate":{}}},"f:spec":{"f:paused":{}}}`)})
}

// prefetch is Ready for the images.
func prefetch(images ...string) *v1alpha1.ImagePrefetch {
	p := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "app", Generation: 3}}
	var resolved []v1alpha1.ImageStatus
	for _, image := range images {
		p.Spec.Images = append(p.Spec.Images, v1alpha1.ImageReference(image))
		resolved = append(resolved, v1alpha1.ImageStatus{Name: image, Digest: digestOf(image)})
	}
	p.Status = v1alpha1.ImagePrefetchStatus{Images: resolved, ObservedGeneration: 3, DesiredNodes: 12, ReadyNodes: 12, Conditions: []metav1.Condition{
		{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAllNodesHoldImages, ObservedGeneration: 3}}}
	return p
}

// pulling is under way.
func pulling(images ...string) *v1alpha1.ImagePrefetch {
	p := prefetch(images...)
	p.Status.ReadyNodes, p.Status.PullingNodes = 3, 2
	p.Status.Conditions[0].Status, p.Status.Conditions[0].Reason = metav1.ConditionFalse, v1alpha1.ReasonDistributing
	return p
}

// failing has failed on a node.
func failing(images ...string) *v1alpha1.ImagePrefetch {
	p := pulling(images...)
	p.Status.FailedNodes = 1
	p.Status.Failures = []v1alpha1.NodeFailure{{Node: "node-7", Image: imageB, Reason: v1alpha1.ReasonImagePullUnauthorized}}
	p.Status.Conditions[0].Reason = v1alpha1.ReasonNodesFailed
	return p
}

// digestOf is what a tag means in these tests.
func digestOf(image string) string { return digest.FromString(image).String() }

// node takes Pods and has nothing.
func node(name string, edits ...func(*Node)) Node {
	n := Node{
		Node:      scheduling.Node{Name: name, OS: "linux", Ready: true, Labels: map[string]string{"pool": "web"}},
		CreatedAt: now.Add(-24 * time.Hour),
	}
	for _, edit := range edits {
		edit(&n)
	}
	return n
}

// has has the agent say that images are there, under these names.
func has(images ...string) func(*Node) {
	return answers(v1alpha1.ImagePresent, images...)
}

func failed(images ...string) func(*Node) { return answers(v1alpha1.ImageFailed, images...) }

// answers has the node asked for images, which its agent reports in a state.
func answers(state v1alpha1.ImageState, images ...string) func(*Node) {
	return func(n *Node) {
		var set v1alpha1.NodeImageSet
		for _, image := range images {
			digest := digestOf(image)
			if _, named, found := strings.Cut(image, "@"); found {
				digest = named
			}
			set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: image, Digest: digest})
			set.Status.Images = append(set.Status.Images, v1alpha1.NodeImageStatus{Name: image, Digest: digest, State: state})
		}
		for _, images := range ImagesOn(&set) {
			knows(images...)(n)
		}
	}
}

// knows has the node asked for images besides.
func knows(images ...Image) func(*Node) {
	return func(n *Node) {
		if n.Images == nil {
			n.Images = map[string][]Image{}
		}
		for _, image := range images {
			ref, err := imageref.Parse(image.Name)
			if err != nil {
				panic(err)
			}
			n.Images[ref.Repository()] = append(n.Images[ref.Repository()], image)
		}
	}
}

// empty is a cluster of one node that has none of the images.
func empty() Cluster { return Cluster{Nodes: []Node{node("node-1")}} }

// patched applies a patch as the API server does.
func patched(t testing.TB, d *appsv1.Deployment, operations []Operation) *appsv1.Deployment {
	t.Helper()
	if len(operations) == 0 {
		return d.DeepCopy()
	}
	result, err := apply(d, operations)
	if err != nil {
		t.Fatalf("apply %v: %v", operations, err)
	}
	return result
}

// applies reports whether the tests of a patch pass.
func applies(t testing.TB, d *appsv1.Deployment, operations []Operation) bool {
	t.Helper()
	if len(operations) == 0 {
		t.Fatal("no patch")
	}
	_, err := apply(d, operations)
	return err == nil
}

func apply(d *appsv1.Deployment, operations []Operation) (*appsv1.Deployment, error) {
	document, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(operations)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		return nil, err
	}
	document, err = patch.Apply(document)
	if err != nil {
		return nil, err
	}
	var result appsv1.Deployment
	return &result, json.Unmarshal(document, &result)
}

// describe writes the marks of a Deployment, with what its hashes stand for.
func describe(d *appsv1.Deployment) string {
	m := marksOf(d)
	name := map[string]string{"": "-"}
	for image, letter := range map[string]string{imageA: "A", imageB: "B", imageC: "C"} {
		name[hashOf(image)] = letter
	}
	since := "-"
	if at, err := time.Parse(time.RFC3339, m.heldAt); err == nil {
		since = now.Sub(at).String()
	}
	state := "running"
	if m.paused {
		state = "paused"
	}
	return strings.Join([]string{state, "hold=" + name[m.hold], "since=" + since, "released=" + letters(m.released, name)}, " ")
}

// letters are the images that were let through, the last first.
func letters(released releases, name map[string]string) string {
	if len(released) == 0 {
		return "-"
	}
	var text string
	for _, hash := range released {
		text += name[hash]
	}
	return text
}
