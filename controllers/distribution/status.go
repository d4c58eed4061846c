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

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/excerpt"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
)

const (
	// maxFailures bounds status.failures.
	maxFailures = 10
	// maxMessage bounds messages, in bytes; the API allows them 1024 characters.
	maxMessage = 1000
)

// statusInput is all that the status of one ImagePrefetch is made of.
type statusInput struct {
	now      time.Time
	prefetch observedPrefetch
	outcome  plan.Outcome
	// joined are the nodes that came while images were being brought to others.
	joined plan.JoinedTimes
	// nodes are all nodes by name.
	nodes map[string]*observedNode
	// anyNodeHas tells whether any node of the cluster holds a digest under a name.
	anyNodeHas func(name, digest string) bool
	// setErrors are the errors of this pass by the node whose NodeImageSet could not
	// be written.
	setErrors map[string]error
	// mirrorFallback says that a node which the mirror could not serve is served otherwise.
	mirrorFallback bool
}

// summarize tells how far a prefetch is. It is pure, and of the same account it
// always says the same, so that a status is written only when there is news.
func summarize(in statusInput) v1alpha1.ImagePrefetchStatus {
	object := in.prefetch.object
	status := v1alpha1.ImagePrefetchStatus{
		ObservedGeneration: object.Generation,
		Conditions:         slices.Clone(object.Status.Conditions),
	}
	var counts nodeCounts
	if in.prefetch.blocker == nil {
		counts = in.countNodes()
		status.DesiredNodes = int32(len(in.outcome.Nodes))
		status.ReadyNodes, status.PullingNodes, status.FailedNodes = counts.ready, counts.pulling, counts.failed
		status.JoiningNodes, status.UncoveredNodes = int32(len(counts.joining)), int32(len(in.outcome.Uncovered))
		status.Images = counts.images
		status.Failures = counts.examples()
	}
	for _, condition := range []metav1.Condition{in.readyCondition(counts), in.degradedCondition(counts)} {
		condition.ObservedGeneration = object.Generation
		condition.LastTransitionTime = metav1.NewTime(in.now) // kept unless the status changes
		condition.Message = excerpt.Of(condition.Message, maxMessage)
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	status.FirstReadyTime = object.Status.FirstReadyTime
	if status.FirstReadyTime == nil && meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionReady) {
		status.FirstReadyTime = &metav1.Time{Time: in.now}
	}
	return status
}

// nodeCounts is what was counted of the desired nodes.
type nodeCounts struct {
	ready, pulling, failed, retrying int32
	images                           []v1alpha1.ImageStatus
	// unresolved and unheld count the images that have no digest yet, and those that
	// have one which no node of the cluster holds.
	unresolved, onNoNode int
	// joining are the nodes, sorted, that came after the prefetch was Ready and lack images.
	joining []string
	// final and retried are failures that stay, and those that are being retried, by
	// node and then image.
	final, retried []v1alpha1.NodeFailure
}

// countNodes looks at each image on each desired node.
func (in statusInput) countNodes() nodeCounts {
	var counts nodeCounts
	digests := in.digests()
	for i := range in.prefetch.images {
		counts.images = append(counts.images, in.imageStatus(i, digests[i]))
	}
	for _, name := range in.outcome.Nodes {
		in.countNode(&counts, name, digests)
	}
	for i, image := range in.prefetch.images {
		switch {
		case digests[i].Digest == "":
			counts.unresolved++
		case counts.images[i].ReadyNodes == 0 && !in.anyNodeHas(image.name, digests[i].Digest):
			counts.onNoNode++
		}
	}
	return counts
}

// digests are what the images of the spec shall be, in its order.
func (in statusInput) digests() []plan.Resolved {
	digests := make([]plan.Resolved, len(in.prefetch.images))
	for i, image := range in.prefetch.images {
		digests[i] = in.outcome.Digests[image.name]
		if image.digest != "" {
			digests[i] = plan.Resolved{Digest: image.digest, Refresh: imageprefetch.Refresh(in.prefetch.object)}
		}
	}
	return digests
}

// imageStatus begins the status of an image. While a tag is being resolved, what it
// was before stands there.
func (in statusInput) imageStatus(i int, resolved plan.Resolved) v1alpha1.ImageStatus {
	status := v1alpha1.ImageStatus{Name: string(in.prefetch.object.Spec.Images[i])}
	before := in.prefetch.object.Status.Images
	if at := slices.IndexFunc(before, func(was v1alpha1.ImageStatus) bool { return was.Name == status.Name }); at >= 0 {
		was := before[at]
		status.Digest, status.Refresh, status.SizeBytes = was.Digest, was.Refresh, was.SizeBytes
	}
	if resolved.Digest != "" {
		if status.Digest != resolved.Digest {
			status.SizeBytes = 0
		}
		status.Digest, status.Refresh = resolved.Digest, resolved.Refresh
	}
	return status
}

// countNode adds one desired node.
func (in statusInput) countNode(counts *nodeCounts, name string, digests []plan.Resolved) {
	var node plan.Node
	if seen, ok := in.nodes[name]; ok {
		node = seen.planNode
	}
	var present int
	var pulling bool
	var final, retried []v1alpha1.NodeFailure
	for i, image := range in.prefetch.images {
		entry := node.Entries[image.name]
		if entry.Wanted == nil || entry.Status == nil {
			continue
		}
		answer := entry.Status
		if answer.Digest != "" && answer.Digest == digests[i].Digest {
			counts.images[i].SizeBytes = max(counts.images[i].SizeBytes, answer.SizeBytes)
		}
		if hasImage(entry, digests[i].Digest) {
			present++
			counts.images[i].ReadyNodes++
			if answer.Source == v1alpha1.SourceUpstream {
				counts.images[i].UpstreamPulls++
			}
			continue
		}
		pulling = pulling || answer.State == v1alpha1.ImagePulling
		failure := v1alpha1.NodeFailure{
			Node: name, Image: counts.images[i].Name,
			Reason: cmp.Or(answer.Reason, v1alpha1.ReasonPullFailed), Message: answer.Message,
		}
		switch {
		// What the mirror does not have, the upstream may: with a fallback that is no end.
		case entry.Failed() && !(in.mirrorFallback && entry.FailedOnMirror()):
			final = append(final, failure)
		case entry.Failed():
			retried = append(retried, failure)
		// A peer that waits for a layer to come to the mirror is at work, not in trouble.
		case answer.Reason != "" && answer.Reason != v1alpha1.ReasonNotOnMirror:
			retried = append(retried, failure)
		}
	}
	if present == len(in.prefetch.images) {
		counts.ready++
		return
	}
	if gone := in.nodeFailure(name, node); gone != nil {
		gone.Image = counts.images[in.firstMissing(node, digests)].Name
		final, retried, pulling = []v1alpha1.NodeFailure{*gone}, nil, false
	}
	switch {
	case in.isJoining(name, node, digests):
		counts.joining = append(counts.joining, name)
	case len(final) > 0 || in.lacksRefusedImage(node, digests):
		counts.failed++
	case len(retried) > 0:
		counts.retrying++
	}
	if pulling {
		counts.pulling++
	}
	counts.final = append(counts.final, sortedByImage(final)...)
	counts.retried = append(counts.retried, sortedByImage(retried)...)
}

// isJoining reports whether a node came after the prefetch was Ready for the first time, and for
// each of the images that it lacks while that was being brought to others. Ready does not wait
// for it: it would not be True for long on a cluster that grows.
func (in statusInput) isJoining(name string, node plan.Node, digests []plan.Resolved) bool {
	ready := in.prefetch.object.Status.FirstReadyTime
	if ready == nil {
		return false
	}
	for i, image := range in.prefetch.images {
		at := in.joined.At(name, image.name)
		if !hasImage(node.Entries[image.name], digests[i].Digest) && (at.IsZero() || at.Before(ready.Time)) {
			return false
		}
	}
	return true
}

// lacksRefusedImage reports whether the node lacks an image that the registry refused to those of its
// platform that were asked: it will not get it, and is not sent to ask as well.
func (in statusInput) lacksRefusedImage(node plan.Node, digests []plan.Resolved) bool {
	for i, image := range in.prefetch.images {
		if slices.Contains(in.outcome.Refused[image.name], node.Platform) && !hasImage(node.Entries[image.name], digests[i].Digest) {
			return true
		}
	}
	return false
}

// hasImage tells whether a node has an image, and the digest that it shall be.
func hasImage(entry plan.Entry, digest string) bool {
	return digest != "" && entry.Wanted != nil && entry.Status != nil &&
		entry.Status.State == v1alpha1.ImagePresent && entry.Status.Digest == digest
}

// nodeFailure is why nothing can be had of a node at all; nil where nothing speaks
// against it.
func (in statusInput) nodeFailure(name string, node plan.Node) *v1alpha1.NodeFailure {
	if node.RuntimeDown {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonRuntimeUnavailable,
			Message: "containerd does not answer the Sluice agent of the node: see the NodeImageSet of the node, and whether containerd runs there"}
	}
	if _, silent := slices.BinarySearch(in.outcome.Silent, name); silent {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonAgentNotRunning,
			Message: "the Sluice agent of the node does not answer: check that its Pod runs there, and what it logs"}
	}
	if _, full := slices.BinarySearch(in.outcome.Full, name); full {
		return &v1alpha1.NodeFailure{Node: name, Reason: v1alpha1.ReasonTooManyImages,
			Message: "the node's NodeImageSet has no room for these images beside those of older ImagePrefetches: " +
				"delete ImagePrefetches that are not needed any more, or choose other nodes with spec.nodeSelector"}
	}
	return nil
}

// firstMissing is the first image of the spec that the node does not hold.
func (in statusInput) firstMissing(node plan.Node, digests []plan.Resolved) int {
	for i, image := range in.prefetch.images {
		if !hasImage(node.Entries[image.name], digests[i].Digest) {
			return i
		}
	}
	return 0
}

func sortedByImage(failures []v1alpha1.NodeFailure) []v1alpha1.NodeFailure {
	slices.SortFunc(failures, func(a, b v1alpha1.NodeFailure) int { return strings.Compare(a.Image, b.Image) })
	return failures
}

// examples are examples: what failed for good before what is being tried again.
func (counts nodeCounts) examples() []v1alpha1.NodeFailure {
	failures := slices.Concat(counts.final, counts.retried)
	failures = failures[:min(len(failures), maxFailures)]
	slices.SortFunc(failures, func(a, b v1alpha1.NodeFailure) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Image, b.Image))
	})
	for i := range failures {
		failures[i].Message = excerpt.Of(failures[i].Message, maxMessage)
	}
	if len(failures) == 0 {
		return nil
	}
	return failures
}

// quantity writes a number with its noun.
func quantity[N int | int32](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
