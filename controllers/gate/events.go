// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/excerpt"
	"github.com/sluice-dev/sluice/internal/hold"
)

const (
	// actionHold and actionRelease are the actions of events.
	actionHold    = "Hold"
	actionRelease = "Release"
	// noticeInterval is the least time between two events that differ in numbers only.
	noticeInterval = 15 * time.Second
)

// recordEnd records the end of a hold in the log, the metrics and an event.
func (r *Reconciler) recordEnd(ctx context.Context, deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, step hold.Step, now time.Time) {
	held := now.Sub(step.HeldAt)
	r.Metrics.observeEnd(step.End, held)
	if step.End == hold.EndElsewhere {
		log.FromContext(ctx).Info("Left the pause to its owner", "held", held)
	} else {
		log.FromContext(ctx).Info("Released Deployment", "end", step.End, "held", held)
	}

	for _, n := range step.Notices {
		kind := corev1.EventTypeNormal
		if n.Warning {
			kind = corev1.EventTypeWarning
		}
		r.record(deployment, prefetch, kind, n.Reason, actionRelease, n.Note)
	}
}

// recordWait records an event about what a Deployment waits for, unless it was recorded lately. It
// returns when it is to be called again for an event that is put off; zero if none is.
func (r *Reconciler) recordWait(deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, step hold.Step, now time.Time) time.Time {
	kind, n := corev1.EventTypeNormal, notice{step.Wait.Reason, "Held: " + step.Wait.Message}
	if step.Wait.Failing() {
		kind = corev1.EventTypeWarning
	}
	if step.TimedOut {
		kind, n = corev1.EventTypeWarning, notice{hold.ReasonHoldTimedOut, fmt.Sprintf("Still held after its hold timeout, as %s says: %s",
			v1alpha1.OnTimeoutAnnotation, step.Wait.Message)}
	}
	due, retryAt := r.holds.shouldRecord(client.ObjectKeyFromObject(deployment), n, now, noticeInterval)
	if due {
		r.record(deployment, prefetch, kind, n.reason, actionHold, n.note)
	}
	return retryAt
}

// recordRejection records an event if the API server rejects the patch of a Deployment. Only the
// administrators of the cluster can change that.
func (r *Reconciler) recordRejection(deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, err error, now time.Time) {
	repeated := r.holds.countRejection(client.ObjectKeyFromObject(deployment)) > 1
	if !repeated && !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
		return // a webhook that is restarted, say: what repeats is told
	}
	n := notice{hold.ReasonReleaseRejected, fmt.Sprintf("Sluice may not release this Deployment: %s; exempt Sluice's controller from what rejects it, "+
		"or let it go by hand: annotate it with %s=%s and resume it", excerpt.Of(err.Error(), hold.MaxQuoted), v1alpha1.GateAnnotation, v1alpha1.GateSkip)}
	if due, _ := r.holds.shouldRecord(client.ObjectKeyFromObject(deployment), n, now, noticeInterval); due {
		r.record(deployment, prefetch, corev1.EventTypeWarning, n.reason, actionRelease, n.note)
	}
}

// record relates the event to the ImagePrefetch in its present version. client-go keeps only the
// first note of events with the same reason and the same versions of the same objects.
func (r *Reconciler) record(deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, kind, reason, action, note string) {
	var related runtime.Object
	if prefetch != nil {
		related = prefetch
	}
	r.Recorder.Eventf(deployment, related, kind, reason, action, "%s", note)
}
