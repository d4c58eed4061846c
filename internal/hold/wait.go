// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/excerpt"
)

// Reasons for which a rollout waits; they are reasons of Events on the Deployment.
const (
	// ReasonPrefetchMissing (Warning): the ImagePrefetch does not exist.
	ReasonPrefetchMissing = "PrefetchMissing"
	// ReasonImagesNotListed (Warning): the ImagePrefetch does not list every image of the Deployment.
	ReasonImagesNotListed = "ImagesNotListed"
	// ReasonPrefetchFailing (Warning): the ImagePrefetch is not Ready, and will not be unless something changes.
	ReasonPrefetchFailing = "PrefetchFailing"
	// ReasonWaitingForNodes (Normal): nodes are still to receive the images.
	ReasonWaitingForNodes = "WaitingForNodes"
)

// Reasons of the other Events on a Deployment.
const (
	// ReasonReleased (Normal): the hold has ended.
	ReasonReleased = "Released"
	// ReasonHoldTimedOut (Warning): the hold timeout has run out; the rollout was let go
	// without its images, or is held further, as the Deployment asks for.
	ReasonHoldTimedOut = "HoldTimedOut"
	// ReasonReleaseRefused (Warning): the API server refuses to have the hold ended, by
	// validation or by what an administrator installed.
	ReasonReleaseRefused = "ReleaseRefused"
)

const (
	// maxListed bounds the images that a message lists.
	maxListed = 3
	// MaxQuoted bounds the text that a message quotes, in bytes: warnings to clients and
	// notes of Events are short.
	MaxQuoted = 300
)

// Wait is what a rollout waits for.
type Wait struct {
	// Reason is one of the reasons of this package.
	Reason string
	// Message says it for a person, in numbers where there are any.
	Message string
}

// Failing tells whether the wait will not end by itself.
func (w Wait) Failing() bool { return w.Reason != ReasonWaitingForNodes }

// waitFor tells what is missing until images may roll out; nil if nothing is. The
// prefetch is nil if there is none of that name.
func waitFor(images ImageSet, name string, prefetch *v1alpha1.ImagePrefetch) *Wait {
	if prefetch == nil || !prefetch.DeletionTimestamp.IsZero() {
		return &Wait{ReasonPrefetchMissing, fmt.Sprintf("ImagePrefetch %q does not exist", name)}
	}
	if missing := images.notListed(&prefetch.Spec); len(missing) > 0 {
		return &Wait{ReasonImagesNotListed, fmt.Sprintf("ImagePrefetch %q does not list %s", name, list(missing))}
	}
	status := &prefetch.Status
	ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || status.ObservedGeneration != prefetch.Generation || ready.ObservedGeneration != prefetch.Generation {
		return &Wait{ReasonWaitingForNodes, fmt.Sprintf("ImagePrefetch %q is new or has changed, and is not planned yet", name)}
	}
	if ready.Status == metav1.ConditionTrue {
		return nil
	}
	reason := ReasonPrefetchFailing
	switch ready.Reason {
	case v1alpha1.ReasonWaitingForSeeds, v1alpha1.ReasonDistributing, v1alpha1.ReasonReconcileFailed:
		reason = ReasonWaitingForNodes
	}
	return &Wait{reason, fmt.Sprintf("ImagePrefetch %q is not Ready: %s", name, progress(status, ready))}
}

// progress is the state of a prefetch in numbers: "3 of 12 nodes hold the images;
// 2 pulling; 1 failed: ImagePullUnauthorized on node-7".
func progress(status *v1alpha1.ImagePrefetchStatus, ready *metav1.Condition) string {
	if status.DesiredNodes == 0 {
		return ready.Reason + ": " + excerpt.Of(ready.Message, MaxQuoted)
	}
	text := fmt.Sprintf("%d of %d nodes hold the images", status.ReadyNodes, status.DesiredNodes)
	if status.PullingNodes > 0 {
		text += fmt.Sprintf("; %d pulling", status.PullingNodes)
	}
	if status.FailedNodes > 0 {
		text += fmt.Sprintf("; %d failed", status.FailedNodes)
		if len(status.Failures) > 0 {
			text += fmt.Sprintf(": %s on %s", status.Failures[0].Reason, status.Failures[0].Node)
		}
	}
	return text
}

// list writes the first few names.
func list(names []string) string {
	if len(names) > maxListed {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), len(names)-maxListed)
	}
	return strings.Join(names, ", ")
}
