// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/excerpt"
)

const (
	// maxFailures bounds status.failures.
	maxFailures = 10
	// maxMessage bounds messages, in bytes; the API allows them 1024 characters.
	maxMessage = 1000
)

// account is all that the status of one ImagePrefetch is made of.
type account struct {
	now      time.Time
	prefetch observedPrefetch
	outcome  plan.Outcome
	// nodes are all nodes by name.
	nodes map[string]*observedNode
	// held tells whether any node of the cluster holds a digest under a name.
	held func(name, digest string) bool
	// unwritten are the errors of this pass by the node whose NodeImageSet could not
	// be written.
	unwritten map[string]error
	// fallback says that a node which the mirror could not serve is served otherwise.
	fallback bool
}

// summarize tells how far a prefetch is. It is pure, and of the same account it
// always says the same, so that a status is written only when there is news.
func summarize(a account) v1alpha1.ImagePrefetchStatus {
	object := a.prefetch.object
	status := v1alpha1.ImagePrefetchStatus{
		ObservedGeneration: object.Generation,
		Conditions:         slices.Clone(object.Status.Conditions),
	}
	var t tally
	if a.prefetch.refusal == nil {
		t = a.count()
		status.DesiredNodes = int32(len(a.outcome.Nodes))
		status.ReadyNodes, status.PullingNodes, status.FailedNodes = t.ready, t.pulling, t.failed
		status.Images = t.images
		status.Failures = t.failures()
	}
	for _, condition := range []metav1.Condition{a.ready(t), a.degraded(t)} {
		condition.ObservedGeneration = object.Generation
		condition.LastTransitionTime = metav1.NewTime(a.now) // kept unless the status changes
		condition.Message = excerpt.Of(condition.Message, maxMessage)
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	return status
}

// tally is what was counted of the desired nodes.
type tally struct {
	ready, pulling, failed, retrying int32
	images                           []v1alpha1.ImageStatus
	// unresolved and unheld count the images that have no digest yet, and those that
	// have one which no node of the cluster holds.
	unresolved, unheld int
	// final and passing are failures that stay, and those that are being retried, by
	// node and then image.
	final, passing []v1alpha1.NodeFailure
}

// count looks at each image on each desired node.
func (a account) count() tally {
	var t tally
	digests := a.digests()
	for i := range a.prefetch.images {
		t.images = append(t.images, a.imageStatus(i, digests[i]))
	}
	for _, name := range a.outcome.Nodes {
		a.countNode(&t, name, digests)
	}
	for i, image := range a.prefetch.images {
		switch {
		case digests[i].Digest == "":
			t.unresolved++
		case t.images[i].ReadyNodes == 0 && !a.held(image.name, digests[i].Digest):
			t.unheld++
		}
	}
	return t
}

// digests are what the images of the spec shall be, in its order.
func (a account) digests() []plan.Resolved {
	digests := make([]plan.Resolved, len(a.prefetch.images))
	for i, image := range a.prefetch.images {
		digests[i] = a.outcome.Digests[image.name]
		if image.digest != "" {
			digests[i] = plan.Resolved{Digest: image.digest, For: a.prefetch.resolution()}
		}
	}
	return digests
}

// imageStatus begins the status of an image. While a tag is being resolved, what it
// was before stands there.
func (a account) imageStatus(i int, resolved plan.Resolved) v1alpha1.ImageStatus {
	status := v1alpha1.ImageStatus{Name: string(a.prefetch.object.Spec.Images[i])}
	before := a.prefetch.object.Status.Images
	if at := slices.IndexFunc(before, func(was v1alpha1.ImageStatus) bool { return was.Name == status.Name }); at >= 0 {
		was := before[at]
		status.Digest, status.ResolvedFor, status.SizeBytes = was.Digest, was.ResolvedFor, was.SizeBytes
	}
	if resolved.Digest != "" {
		if status.Digest != resolved.Digest {
			status.SizeBytes = 0
		}
		status.Digest, status.ResolvedFor = resolved.Digest, resolved.For
	}
	return status
}

// countNode adds one desired node.
func (a account) countNode(t *tally, name string, digests []plan.Resolved) {
	var node plan.Node
	if seen, ok := a.nodes[name]; ok {
		node = seen.plan
	}
	var held int
	var pulling bool
	var final, passing []v1alpha1.NodeFailure
	for i, image := range a.prefetch.images {
		entry := node.Entries[image.name]
		if entry.Wanted == nil || entry.Status == nil {
			continue
		}
		answer := entry.Status
		if answer.Digest != "" && answer.Digest == digests[i].Digest {
			t.images[i].SizeBytes = max(t.images[i].SizeBytes, answer.SizeBytes)
		}
		if holds(entry, digests[i].Digest) {
			held++
			t.images[i].ReadyNodes++
			if answer.Source == v1alpha1.SourceUpstream {
				t.images[i].UpstreamPulls++
			}
			continue
		}
		pulling = pulling || answer.State == v1alpha1.ImagePulling
		failure := v1alpha1.NodeFailure{
			Node: name, Image: t.images[i].Name,
			Reason: cmp.Or(answer.Reason, v1alpha1.ReasonPullFailed), Message: answer.Message,
		}
		switch {
		// What the mirror does not have, the upstream may: with a fallback that is no end.
		case entry.Failed() && !(a.fallback && entry.FailedOnMirror()):
			final = append(final, failure)
		case entry.Failed():
			passing = append(passing, failure)
		// A peer that waits for a layer to come to the mirror is at work, not in trouble.
		case answer.Reason != "" && answer.Reason != v1alpha1.ReasonNotOnMirror:
			passing = append(passing, failure)
		}
	}
	if held == len(a.prefetch.images) {
		t.ready++
		return
	}
	if gone := a.nodeFailure(name, node); gone != nil {
		gone.Image = t.images[a.firstMissing(node, digests)].Name
		final, passing, pulling = []v1alpha1.NodeFailure{*gone}, nil, false
	}
	switch {
	case len(final) > 0 || a.refused(node, digests):
		t.failed++
	case len(passing) > 0:
		t.retrying++
	}
	if pulling {
		t.pulling++
	}
	t.final = append(t.final, byImage(final)...)
	t.passing = append(t.passing, byImage(passing)...)
}

// refused tells whether the node lacks an image that the registry refused to those who
// were asked: it will not get it, and is not sent to ask as well.
func (a account) refused(node plan.Node, digests []plan.Resolved) bool {
	return slices.ContainsFunc(a.outcome.Refused, func(name string) bool {
		i := slices.IndexFunc(a.prefetch.images, func(image image) bool { return image.name == name })
		return i >= 0 && !holds(node.Entries[name], digests[i].Digest)
	})
}

// holds tells whether a node has an image, and the digest that it shall be.
func holds(entry plan.Entry, digest string) bool {
	return digest != "" && entry.Wanted != nil && entry.Status != nil &&
		entry.Status.State == v1alpha1.ImagePresent && entry.Status.Digest == digest
}

// nodeFailure is why nothing can be had of a node at all; nil where nothing speaks
// against it.
func (a account) nodeFailure(name string, node plan.Node) *v1alpha1.NodeFailure {
	if node.Unsupported {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonUnsupportedRuntime,
			Message: "the container runtime of the node is not containerd 2.1 or newer; see the NodeImageSet of the node"}
	}
	if node.RuntimeDown {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonRuntimeUnavailable,
			Message: "containerd does not answer the Sluice agent of the node: see the NodeImageSet of the node, and whether containerd runs there"}
	}
	if _, silent := slices.BinarySearch(a.outcome.Silent, name); silent {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonAgentNotRunning,
			Message: "the Sluice agent of the node does not answer: check that its Pod runs there, and what it logs"}
	}
	if _, full := slices.BinarySearch(a.outcome.Full, name); full {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonTooManyImages,
			Message: "the node's NodeImageSet has no room for these images beside those of older ImagePrefetches: " +
				"delete ImagePrefetches that are not needed any more, or choose other nodes with spec.nodeSelector"}
	}
	return nil
}

// firstMissing is the first image of the spec that the node does not hold.
func (a account) firstMissing(node plan.Node, digests []plan.Resolved) int {
	for i, image := range a.prefetch.images {
		if !holds(node.Entries[image.name], digests[i].Digest) {
			return i
		}
	}
	return 0
}

func byImage(failures []v1alpha1.NodeFailure) []v1alpha1.NodeFailure {
	slices.SortFunc(failures, func(a, b v1alpha1.NodeFailure) int { return strings.Compare(a.Image, b.Image) })
	return failures
}

// failures are examples: what failed for good before what is being tried again.
func (t tally) failures() []v1alpha1.NodeFailure {
	examples := slices.Concat(t.final, t.passing)
	examples = examples[:min(len(examples), maxFailures)]
	slices.SortFunc(examples, func(a, b v1alpha1.NodeFailure) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Image, b.Image))
	})
	for i := range examples {
		examples[i].Message = excerpt.Of(examples[i].Message, maxMessage)
	}
	if len(examples) == 0 {
		return nil
	}
	return examples
}

// tolerated is how many of the desired nodes may fail.
func tolerated(spec *v1alpha1.ImagePrefetchSpec, desired int) int32 {
	if spec.FailureTolerance == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(spec.FailureTolerance, desired, false)
	if err != nil {
		return 0 // the schema admits no such value
	}
	return int32(n)
}

// counted writes a number with its noun.
func counted[N int | int32](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
