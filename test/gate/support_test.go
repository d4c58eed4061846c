// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const repository = "registry.example.com/org/app"

// kubectl runs the real one, with input on its standard input.
func kubectl(ctx context.Context, input string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, control.KubectlPath(), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+control.Kubeconfig())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String(), err
}

// deploymentYAML is a manifest of a gated Deployment that runs a tag of the
// repository. Each line of extra goes below spec.
func deploymentYAML(namespace, name, tag string, extra ...string) string {
	manifest := fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata:
  namespace: %[1]s
  name: %[2]s
  annotations: {sluice.dev/prefetch: app}
spec:
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec: {containers: [{name: main, image: "%[3]s:%[4]s"}]}
`, namespace, name, repository, tag)
	for _, line := range extra {
		manifest += "  " + line + "\n"
	}
	return manifest
}

// tenant is a team with one gated Deployment, "app", and one ImagePrefetch of that name.
type tenant struct{ namespace string }

func newTenant(ctx context.Context) tenant { return tenant{newNamespace(ctx)} }

// runningTenant has rolled out version a.
func runningTenant(ctx context.Context) tenant {
	GinkgoHelper()
	t := newTenant(ctx)
	t.prefetch(ctx, ready, "a")
	t.apply(ctx, "a")
	t.expectRolling(ctx, "a")
	return t
}

// holdingTenant has rolled out version a, and waits with version b for the
// ImagePrefetch, which is still pulling both.
func holdingTenant(ctx context.Context, annotations ...string) tenant {
	GinkgoHelper()
	t := runningTenant(ctx)
	if len(annotations) > 0 {
		t.kubectl(ctx, append([]string{"annotate", "deployment", "app"}, annotations...)...)
	}
	t.prefetch(ctx, pulling, "a", "b")
	t.setImage(ctx, "b")
	t.expectHeld(ctx, "a")
	return t
}

// kubectl runs it in the tenant's namespace, expects success, and returns both outputs.
func (t tenant) kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	stdout, stderr, err := kubectl(ctx, "", append([]string{"--namespace=" + t.namespace}, args...)...)
	Expect(err).NotTo(HaveOccurred())
	return stdout + stderr
}

// apply applies a manifest as the client does, unless args say otherwise.
func (t tenant) apply(ctx context.Context, tag string, extra ...string) string {
	GinkgoHelper()
	return t.feed(ctx, deploymentYAML(t.namespace, "app", tag, extra...), "apply")
}

// feed gives a manifest to a command of kubectl.
func (t tenant) feed(ctx context.Context, manifest string, command ...string) string {
	GinkgoHelper()
	stdout, stderr, err := kubectl(ctx, manifest, append(command, "-f", "-")...)
	Expect(err).NotTo(HaveOccurred())
	return stdout + stderr
}

func (t tenant) setImage(ctx context.Context, tag string) string {
	GinkgoHelper()
	return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":"+tag)
}

// relabelled is the Deployment as kubectl reads it, with the labels of some program in place of all
// others, and without some of its annotations.
func (t tenant) relabelled(ctx context.Context, without ...string) string {
	GinkgoHelper()
	var read map[string]any
	Expect(json.Unmarshal([]byte(t.kubectl(ctx, "get", "deployment", "app", "--output=json")), &read)).To(Succeed())
	metadata := read["metadata"].(map[string]any)
	metadata["labels"] = map[string]any{"example.com/program": "x"}
	for _, key := range without {
		delete(metadata["annotations"].(map[string]any), key)
	}
	written, err := json.Marshal(read)
	Expect(err).NotTo(HaveOccurred())
	return string(written)
}

// progress is what the status of an ImagePrefetch says.
type progress func(*v1alpha1.ImagePrefetchStatus, *metav1.Condition)

func ready(s *v1alpha1.ImagePrefetchStatus, c *metav1.Condition) {
	s.ReadyNodes = 12
	c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonAllNodesHoldImages
}

func pulling(s *v1alpha1.ImagePrefetchStatus, c *metav1.Condition) {
	s.ReadyNodes, s.PullingNodes = 3, 2
	c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonDistributing
}

func failing(s *v1alpha1.ImagePrefetchStatus, c *metav1.Condition) {
	s.ReadyNodes, s.FailedNodes = 11, 1
	s.Failures = []v1alpha1.NodeFailure{{Node: "node-7", Image: repository + ":b", Reason: v1alpha1.ReasonImagePullUnauthorized}}
	c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonNodesFailed
}

// allowedFailure is a failure on no more nodes than spec.failureTolerance.
func allowedFailure(s *v1alpha1.ImagePrefetchStatus, c *metav1.Condition) {
	failing(s, c)
	c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonFailuresTolerated
}

// prefetch makes the tenant's ImagePrefetch list these versions, with a status.
func (t tenant) prefetch(ctx context.Context, p progress, tags ...string) {
	GinkgoHelper()
	t.prefetchNamed(ctx, "app", p, tags...)
}

func (t tenant) prefetchNamed(ctx context.Context, name string, p progress, tags ...string) {
	GinkgoHelper()
	prefetch := v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: name}}
	err := api.Get(ctx, client.ObjectKeyFromObject(&prefetch), &prefetch)
	Expect(client.IgnoreNotFound(err)).NotTo(HaveOccurred())
	var images []v1alpha1.ImageReference
	for _, tag := range tags {
		images = append(images, v1alpha1.ImageReference(repository+":"+tag))
	}
	switch {
	case err != nil:
		prefetch.Spec.Images = images
		Expect(api.Create(ctx, &prefetch)).To(Succeed())
	case !slices.Equal(prefetch.Spec.Images, images):
		prefetch.Spec.Images = images
		Expect(api.Update(ctx, &prefetch)).To(Succeed())
	}
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, ObservedGeneration: prefetch.Generation, LastTransitionTime: metav1.Now()}
	prefetch.Status = v1alpha1.ImagePrefetchStatus{ObservedGeneration: prefetch.Generation, DesiredNodes: 12, Images: resolvedTo(tags...)}
	p(&prefetch.Status, &condition)
	prefetch.Status.Conditions = []metav1.Condition{condition}
	Expect(api.Status().Update(ctx, &prefetch)).To(Succeed())
}

// resolvedTo is the status of tags that are resolved.
func resolvedTo(tags ...string) []v1alpha1.ImageStatus {
	var images []v1alpha1.ImageStatus
	for _, tag := range tags {
		images = append(images, v1alpha1.ImageStatus{Name: repository + ":" + tag, Digest: digestOf(tag)})
	}
	return images
}

func (t tenant) deployment(ctx context.Context) *appsv1.Deployment {
	GinkgoHelper()
	var d appsv1.Deployment
	Expect(api.Get(ctx, client.ObjectKey{Namespace: t.namespace, Name: "app"}, &d)).To(Succeed())
	return &d
}

// versions are the tags of the ReplicaSets, in the order of their revisions.
func (t tenant) versions(ctx context.Context) []string {
	GinkgoHelper()
	var sets appsv1.ReplicaSetList
	Expect(api.List(ctx, &sets, client.InNamespace(t.namespace))).To(Succeed())
	slices.SortFunc(sets.Items, func(a, b appsv1.ReplicaSet) int {
		const revision = "deployment.kubernetes.io/revision"
		return strings.Compare(a.Annotations[revision], b.Annotations[revision])
	})
	var tags []string
	for _, set := range sets.Items {
		_, tag, _ := strings.Cut(set.Spec.Template.Spec.Containers[0].Image, ":")
		tags = append(tags, tag)
	}
	return tags
}

// observed waits until the Deployment controller has acted on what is stored.
func (t tenant) observed(ctx context.Context) *appsv1.Deployment {
	GinkgoHelper()
	var d *appsv1.Deployment
	Eventually(func(g Gomega) {
		d = t.deployment(ctx)
		g.Expect(d.Status.ObservedGeneration).To(Equal(d.Generation))
	}).Should(Succeed())
	return d
}

// expectHeld expects a hold, and after the Deployment controller has seen it only
// ReplicaSets of these versions.
func (t tenant) expectHeld(ctx context.Context, versions ...string) *appsv1.Deployment {
	GinkgoHelper()
	d := t.observed(ctx)
	Expect(d.Spec.Paused).To(BeTrue(), "is paused")
	Expect(d.Labels).To(HaveKey(v1alpha1.HoldLabel))
	Expect(d.Annotations).To(HaveKey(v1alpha1.HeldAtAnnotation))
	Expect(t.versions(ctx)).To(HaveExactElements(versions), "ReplicaSets")
	return d
}

// expectOwnersPause expects a pause that is not Sluice's.
func (t tenant) expectOwnersPause(ctx context.Context, versions ...string) {
	GinkgoHelper()
	d := t.observed(ctx)
	Expect(d.Spec.Paused).To(BeTrue(), "is paused")
	Expect(d.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
	Expect(t.versions(ctx)).To(HaveExactElements(versions), "ReplicaSets")
}

// expectRolling expects that nothing is held, soon, and ReplicaSets of these versions,
// the last of them the current one.
func (t tenant) expectRolling(ctx context.Context, versions ...string) *appsv1.Deployment {
	GinkgoHelper()
	var d *appsv1.Deployment
	Eventually(func(g Gomega) {
		d = t.deployment(ctx)
		g.Expect(d.Spec.Paused).To(BeFalse(), "is paused")
		g.Expect(d.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
		g.Expect(d.Annotations).NotTo(HaveKey(v1alpha1.HeldAtAnnotation))
		g.Expect(d.Status.ObservedGeneration).To(Equal(d.Generation))
		g.Expect(t.versions(ctx)).To(HaveExactElements(versions), "ReplicaSets")
	}).Should(Succeed())
	return d
}

// notes are what the events of a reason on the Deployment say.
func (t tenant) notes(ctx context.Context, reason string) func() []string {
	return func() []string {
		var events eventsv1.EventList
		if err := api.List(ctx, &events, client.InNamespace(t.namespace)); err != nil {
			return nil
		}
		var notes []string
		for _, event := range events.Items {
			if event.Reason == reason && event.Regarding.Kind == "Deployment" {
				notes = append(notes, event.Type+": "+event.Note)
			}
		}
		return notes
	}
}
