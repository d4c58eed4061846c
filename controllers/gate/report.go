// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/api/gate"
	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// actionHold and actionRelease are what was being done, as events say it.
	actionHold    = "Hold"
	actionRelease = "Release"
	// tellInterval is the time between events in which only numbers change.
	tellInterval = 15 * time.Second
)

// ended tells that a hold has ended.
func (r *Reconciler) ended(ctx context.Context, deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, step gate.Step, now time.Time) {
	_, _, left := r.holds.forget(client.ObjectKeyFromObject(deployment))
	r.Metrics.active.Set(float64(left))
	held := now.Sub(step.HeldAt)
	r.Metrics.ended(step.End, held)
	log.FromContext(ctx).Info("Released Deployment", "end", step.End, "held", held)

	kind, reason, note := corev1.EventTypeNormal, gate.ReasonReleased, ""
	switch step.End {
	case gate.EndReady:
		note = fmt.Sprintf("Released after %s: ImagePrefetch %q is Ready", round(held), prefetch.Name)
	case gate.EndTimedOut:
		kind, reason = corev1.EventTypeWarning, gate.ReasonHoldTimedOut
		note = fmt.Sprintf("Released after %s without its images, by its hold timeout: %s", round(held), step.Wait.Message)
	case gate.EndOptedOut:
		note = fmt.Sprintf("Released after %s: the Deployment is no longer gated", round(held))
	case gate.EndSetBack:
		note = fmt.Sprintf("Released after %s: its images are those that were last released", round(held))
	case gate.EndResumed:
		kind = corev1.EventTypeWarning
		note = "Not held any more: it was resumed past Sluice, and rolls out"
	default:
		return
	}
	r.record(deployment, prefetch, kind, reason, actionRelease, note)
}

// tellWaiting tells for what a Deployment waits. The result is when there will be
// something to tell even if nothing happens; zero if there is nothing.
func (r *Reconciler) tellWaiting(deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, step gate.Step, now time.Time) time.Time {
	kind, n := corev1.EventTypeNormal, notice{step.Wait.Reason, "Held: " + step.Wait.Message}
	if step.Wait.Failing() {
		kind = corev1.EventTypeWarning
	}
	if step.TimedOut {
		kind, n = corev1.EventTypeWarning, notice{gate.ReasonHoldTimedOut, fmt.Sprintf("Still held after its hold timeout, as %s says: %s",
			v1alpha1.OnTimeoutAnnotation, step.Wait.Message)}
	}
	news, again := r.holds.tell(client.ObjectKeyFromObject(deployment), n, now, tellInterval)
	if news {
		r.record(deployment, prefetch, kind, n.reason, actionHold, n.note)
	}
	return again
}

// record names the ImagePrefetch as it is now beside the Deployment: of events about
// the same objects at the same versions, only the first note would be kept.
func (r *Reconciler) record(deployment *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, kind, reason, action, note string) {
	var related runtime.Object
	if prefetch != nil {
		related = prefetch
	}
	r.Recorder.Eventf(deployment, related, kind, reason, action, "%s", note)
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}
