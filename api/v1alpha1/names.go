// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Annotations and labels that users set.
const (
	// RefreshAnnotation on an ImagePrefetch has its tags resolved again each time
	// its value changes. The value is free; a timestamp is usual.
	RefreshAnnotation = "sluice.dev/refresh"

	// PrefetchAnnotation on a Deployment names the ImagePrefetch, in the same
	// namespace, that its rollouts wait for.
	PrefetchAnnotation = "sluice.dev/prefetch"
	// HoldTimeoutAnnotation on a Deployment is how long a rollout is held at the
	// most, as a Go duration. Default 10m; 0 means without end.
	HoldTimeoutAnnotation = "sluice.dev/hold-timeout"
	// OnTimeoutAnnotation on a Deployment says what happens when the hold timeout
	// has run out: Release (the default) or Hold.
	OnTimeoutAnnotation = "sluice.dev/on-timeout"
	// GateAnnotation on a Deployment with the value GateSkip lets every rollout
	// through: the way out.
	GateAnnotation = "sluice.dev/gate"
	// GateSkip is the only value of GateAnnotation.
	GateSkip = "skip"

	// ContactAnnotation on a PrefetchPolicy says whom to ask about it. It stands in
	// the message with which an image is refused.
	ContactAnnotation = "sluice.dev/contact"
)

// Labels and annotations that Sluice sets.
const (
	// HoldLabel on a Deployment says that Sluice paused it; its value is the hash
	// of the images that are waited for. A label, because a label neither bumps
	// the generation nor is copied to ReplicaSets nor touched by an undo.
	HoldLabel = "sluice.dev/hold"
	// HeldAtAnnotation is when the present hold began, in RFC 3339.
	HeldAtAnnotation = "sluice.dev/held-at"
	// ReleasedAnnotation has the hashes of the last ten sets of images that were let through,
	// the last one first, with commas in between.
	ReleasedAnnotation = "sluice.dev/released"
)
