// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/excerpt"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
)

// maxFailures bounds status.failures.
const maxFailures = 10

// nodeCounts are the counts of the desired nodes, and what was found on them.
type nodeCounts struct {
	ready, pulling, failed, retrying int32
	images                           []v1alpha1.ImageStatus
	// unresolved counts the images without a digest, and onNoNode those whose digest no node of the
	// cluster has.
	unresolved, onNoNode int
	// joining are the nodes, sorted, that came after the prefetch was Ready and lack images.
	joining []string
	// final are the failures that are not retried, and retried the others. Both are sorted by node
	// and then by image.
	final, retried []v1alpha1.NodeFailure
}

// countNodes counts the desired nodes.
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

// digests returns the digests of the images of the spec, in its order.
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

// imageStatus returns the status of an image without its counts. While a tag is being resolved, the
// status keeps the digest that the tag had before.
func (in statusInput) imageStatus(i int, resolved plan.Resolved) v1alpha1.ImageStatus {
	status := v1alpha1.ImageStatus{Name: string(in.prefetch.object.Spec.Images[i])}
	before := in.prefetch.object.Status.Images
	if at := slices.IndexFunc(before, func(image v1alpha1.ImageStatus) bool { return image.Name == status.Name }); at >= 0 {
		last := before[at]
		status.Digest, status.Refresh, status.SizeBytes = last.Digest, last.Refresh, last.SizeBytes
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
		addEntry(&counts.images[i], entry, digests[i].Digest)
		if hasImage(entry, digests[i].Digest) {
			present++
			continue
		}
		pulling = pulling || entry.Status.State == v1alpha1.ImagePulling
		failure := v1alpha1.NodeFailure{
			Node: name, Image: counts.images[i].Name,
			Reason: cmp.Or(entry.Status.Reason, v1alpha1.ReasonPullFailed), Message: entry.Status.Message,
		}
		switch {
		case in.hasFailed(entry):
			final = append(final, failure)
		case isRetried(entry):
			retried = append(retried, failure)
		}
	}
	if present == len(in.prefetch.images) {
		counts.ready++
		return
	}
	if failure := in.nodeFailure(name, node); failure != nil {
		failure.Image = counts.images[in.firstMissing(node, digests)].Name
		final, retried, pulling = []v1alpha1.NodeFailure{*failure}, nil, false
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

// addEntry adds an entry of a desired node to the status of its image.
func addEntry(status *v1alpha1.ImageStatus, entry plan.Entry, digest string) {
	if entry.Status.Digest != "" && entry.Status.Digest == digest {
		status.SizeBytes = max(status.SizeBytes, entry.Status.SizeBytes)
	}
	if hasImage(entry, digest) {
		status.ReadyNodes++
		if entry.Status.Source == v1alpha1.SourceUpstream {
			status.UpstreamPulls++
		}
	}
}

// hasFailed reports whether the image of an entry has failed for good. If the mirror failed it, the
// upstream may still serve it, if the plan falls back to that.
func (in statusInput) hasFailed(entry plan.Entry) bool {
	return entry.Failed() && !(in.mirrorFallback && entry.FailedOnMirror())
}

// isRetried reports whether a failure of an entry is shown that has not failed for good. A peer whose
// mirror lacks a layer is not shown: the layer is on its way.
func isRetried(entry plan.Entry) bool {
	return entry.Failed() || entry.Status.Reason != "" && entry.Status.Reason != v1alpha1.ReasonNotOnMirror
}

// isJoining reports whether a node came after the prefetch was Ready for the first time, and while
// each of the images that it lacks was being brought to others. Ready does not wait for such a node,
// or it would rarely be True on a cluster that grows.
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

// lacksRefusedImage reports whether the node lacks an image that the registry refused to seeds of its
// platform. The node does not get it, though it was not itself sent to the registry.
func (in statusInput) lacksRefusedImage(node plan.Node, digests []plan.Resolved) bool {
	for i, image := range in.prefetch.images {
		if slices.Contains(in.outcome.Refused[image.name], node.Platform) && !hasImage(node.Entries[image.name], digests[i].Digest) {
			return true
		}
	}
	return false
}

// hasImage reports whether a node has an image with the right digest.
func hasImage(entry plan.Entry, digest string) bool {
	return digest != "" && entry.Wanted != nil && entry.Status != nil &&
		entry.Status.State == v1alpha1.ImagePresent && entry.Status.Digest == digest
}

// nodeFailure returns why a node gets no images at all; nil if it may get some.
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

// firstMissing returns the index of the first image of the spec that the node lacks.
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

// examples returns a bounded number of failures, the final ones before the retried ones.
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
