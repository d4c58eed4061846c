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
	"github.com/sluice-dev/sluice/internal/imageref"
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
	// ReasonNotHeld (Normal or Warning): a rollout to new images was let through at once, although
	// not all nodes that the Pods can run on have them.
	ReasonNotHeld = "NotHeld"
	// ReasonHoldTimedOut (Warning): the hold timeout has run out; the rollout was let go
	// without its images, or is held further, as the Deployment asks for.
	ReasonHoldTimedOut = "HoldTimedOut"
	// ReasonReleaseRejected (Warning): the API server rejects the end of the hold, by
	// validation or by what an administrator installed.
	ReasonReleaseRejected = "ReleaseRejected"
	// ReasonNodesNotSelected (Warning): the ImagePrefetch does not select all nodes that the
	// Pods can run on, so that Pods which start on the others pull for themselves.
	ReasonNodesNotSelected = "NodesNotSelected"
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

// Failing reports whether the wait will not end by itself.
func (w Wait) Failing() bool { return w.Reason != ReasonWaitingForNodes }

// waitFor says what is missing until images may roll out because their ImagePrefetch is
// Ready; nil if nothing is. The prefetch is nil if there is none of that name.
func waitFor(images TemplateImages, settings Settings, prefetch *v1alpha1.ImagePrefetch, evidence Evidence) *Wait {
	if prefetch == nil || !prefetch.DeletionTimestamp.IsZero() {
		return &Wait{ReasonPrefetchMissing, fmt.Sprintf("ImagePrefetch %q does not exist, and %s", settings.Prefetch, evidence.describe())}
	}
	if missing := notCovered(images, prefetch); len(missing) > 0 {
		return &Wait{ReasonImagesNotListed, fmt.Sprintf("ImagePrefetch %q does not list %s, and %s", settings.Prefetch, list(missing), evidence.describe())}
	}
	ready := meta.FindStatusCondition(prefetch.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || prefetch.Status.ObservedGeneration != prefetch.Generation || ready.ObservedGeneration != prefetch.Generation {
		return &Wait{ReasonWaitingForNodes, fmt.Sprintf("ImagePrefetch %q is new or has changed, and is not planned yet", settings.Prefetch)}
	}
	unresolved := unresolvedBy(images, prefetch)
	if ready.Status == metav1.ConditionTrue && len(unresolved) == 0 {
		return nil
	}
	is := "is not Ready:"
	if ready.Status == metav1.ConditionTrue {
		is = "is Ready, but" // failures are allowed, or the tag is asked for again
	}
	reason := ReasonWaitingForNodes
	if needsHelp(images, ready, prefetch, unresolved, settings, evidence) {
		reason = ReasonPrefetchFailing
	}
	return &Wait{reason, fmt.Sprintf("ImagePrefetch %q %s %s", settings.Prefetch, is, progress(images, prefetch, ready, unresolved, evidence))}
}

// needsHelp reports whether what these images wait for will not come by itself.
func needsHelp(images TemplateImages, ready *metav1.Condition, prefetch *v1alpha1.ImagePrefetch, unresolved []string, settings Settings, evidence Evidence) bool {
	switch ready.Reason {
	case v1alpha1.ReasonWaitingForSeeds, v1alpha1.ReasonDistributing, v1alpha1.ReasonReconcileFailed,
		v1alpha1.ReasonAllNodesHoldImages, v1alpha1.ReasonFailuresTolerated:
		return false
	case v1alpha1.ReasonNodesFailed:
		return len(unresolved) > 0 || evidence.Failed > settings.allowedFailures(prefetch, evidence.Awaited) || failureOf(images, prefetch) != nil
	}
	return true
}

// progress says in numbers how far the images of one workload are, or why nothing moves.
func progress(images TemplateImages, prefetch *v1alpha1.ImagePrefetch, ready *metav1.Condition, unresolved []string, evidence Evidence) string {
	switch ready.Reason {
	case v1alpha1.ReasonWaitingForSeeds, v1alpha1.ReasonDistributing, v1alpha1.ReasonReconcileFailed,
		v1alpha1.ReasonAllNodesHoldImages, v1alpha1.ReasonFailuresTolerated, v1alpha1.ReasonNodesFailed:
	default:
		return ready.Reason + ": " + excerpt.Of(ready.Message, MaxQuoted)
	}
	text := evidence.describe()
	if len(unresolved) > 0 {
		text = list(unresolved) + " is to be resolved; " + text
	}
	switch failure := failureOf(images, prefetch); {
	case failure == nil:
	case failure.Node == evidence.Fails: // which the text ends with
		text += ": " + failure.Reason
	default:
		text += fmt.Sprintf(": %s on %s", failure.Reason, failure.Node)
	}
	return text
}

// failureOf is the first failure in a status that concerns one of the images.
func failureOf(images TemplateImages, prefetch *v1alpha1.ImagePrefetch) *v1alpha1.NodeFailure {
	for i := range prefetch.Status.Failures {
		failure := &prefetch.Status.Failures[i]
		if ref, err := imageref.Parse(failure.Image); err == nil && images.needs(ref, prefetch) {
			return failure
		}
	}
	return nil
}

// list writes the first few names.
func list(names []string) string {
	if len(names) > maxListed {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), len(names)-maxListed)
	}
	return strings.Join(names, ", ")
}
