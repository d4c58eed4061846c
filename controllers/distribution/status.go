// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/excerpt"
)

// maxMessage bounds messages, in bytes; the API allows them 1024 characters.
const maxMessage = 1000

// statusInput is all that the status of one ImagePrefetch depends on.
type statusInput struct {
	now      time.Time
	prefetch observedPrefetch
	outcome  plan.Outcome
	// joined are the nodes that came while images were being brought to others.
	joined plan.JoinedTimes
	// nodes are all nodes by name.
	nodes map[string]*observedNode
	// anyNodeHas reports whether any node of the cluster has a digest under a name.
	anyNodeHas func(name, digest string) bool
	// setErrors are the errors of NodeImageSets that could not be written in this pass, by node.
	setErrors map[string]error
	// mirrorFallback says that the plan lets a node use the upstream after the mirror failed it.
	mirrorFallback bool
}

// summarize makes the status of an ImagePrefetch. It is pure and deterministic: equal inputs give
// equal statuses, which are not written again.
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
		condition.LastTransitionTime = metav1.NewTime(in.now) // SetStatusCondition uses it only if the status changes
		condition.Message = excerpt.Of(condition.Message, maxMessage)
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	status.FirstReadyTime = object.Status.FirstReadyTime
	if status.FirstReadyTime == nil && meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionReady) {
		status.FirstReadyTime = &metav1.Time{Time: in.now}
	}
	return status
}
