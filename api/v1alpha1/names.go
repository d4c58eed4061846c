// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Annotations and labels that users set.
const (
	// RefreshAnnotation on an ImagePrefetch has its tags resolved again each time its
	// value changes. Any value will do; a timestamp is usual.
	RefreshAnnotation = "sluice.dev/refresh"

	// PrefetchAnnotation on a Deployment names the ImagePrefetch, in the same
	// namespace, that its rollouts wait for.
	PrefetchAnnotation = "sluice.dev/prefetch"
	// HoldTimeoutAnnotation on a Deployment is how long a rollout is held at most, as a
	// Go duration. Default 10m; 0 means without end.
	HoldTimeoutAnnotation = "sluice.dev/hold-timeout"
	// OnTimeoutAnnotation on a Deployment says what happens when the hold timeout
	// has run out: Release (the default) or Hold.
	OnTimeoutAnnotation = "sluice.dev/on-timeout"
	// GateAnnotation on a Deployment with the value GateSkip opts out of the gate: no
	// rollout is held.
	GateAnnotation = "sluice.dev/gate"
	// GateSkip is the only value of GateAnnotation.
	GateSkip = "skip"

	// ContactAnnotation on a PrefetchPolicy says whom to ask about it. The message that
	// denies an image repeats it.
	ContactAnnotation = "sluice.dev/contact"
)

// Labels and annotations that Sluice sets.
const (
	// HoldLabel on a Deployment says that Sluice paused it; its value is the hash of the
	// images that are waited for. It is a label because a label does not change the
	// generation, is not copied to ReplicaSets, and stays as it is in an undo.
	HoldLabel = "sluice.dev/hold"
	// HeldAtAnnotation is when the present hold began, in RFC 3339.
	HeldAtAnnotation = "sluice.dev/held-at"
	// ReleasedAnnotation has the hashes of the last ten sets of images that were let through,
	// the last one first, with commas in between.
	ReleasedAnnotation = "sluice.dev/released"
)
