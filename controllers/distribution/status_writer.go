// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/requeue"
)

// statusResult is the result of writing statuses.
type statusResult struct {
	err error
	// retryAt is when the next pass must start because a status was put off, or its object had
	// changed; zero if there is none.
	retryAt time.Time
}

// writeStatuses writes the statuses that differ from the stored ones, and then records an event on
// each transition.
func (r *Reconciler) writeStatuses(ctx context.Context, seen *observation, step plan.Step, sets setResult) statusResult {
	var result statusResult
	var writes []statusWrite
	now := r.Clock.Now()
	anyNodeHas := nodesHave(seen.nodes)
	for _, prefetch := range seen.prefetches {
		before := &prefetch.object.Status
		after := summarize(statusInput{
			now: now, prefetch: prefetch, outcome: step.Prefetches[prefetch.key()], joined: step.Joined, nodes: seen.nodes,
			anyNodeHas: anyNodeHas, setErrors: sets.errors, mirrorFallback: r.Limits.MirrorFallback != plan.FallbackNever,
		})
		if equality.Semantic.DeepEqual(before, &after) {
			continue
		}
		if due := r.statusTimes.due(prefetch.object.UID); now.Before(due) && !isUrgent(before, &after) {
			result.retryAt = requeue.Earliest(result.retryAt, due)
			continue
		}
		write := statusWrite{before: before, object: prefetch.object.DeepCopy()}
		write.object.Status = after
		writes = append(writes, write)
	}
	errs := forEach(writes, func(w statusWrite) error { return r.Client.Status().Update(ctx, w.object) })
	for i, write := range writes {
		switch err := errs[i]; {
		case err == nil:
			r.afterStatusWrite(ctx, write)
		case isStale(err):
			result.retryAt = requeue.Earliest(result.retryAt, r.Clock.Now().Add(passInterval))
		default:
			result.err = errors.Join(result.err, fmt.Errorf("write status of ImagePrefetch %s: %w", client.ObjectKeyFromObject(write.object), err))
		}
	}
	return result
}

// isUrgent reports whether a status is written at once: because a condition changed that somebody
// waits for, or because a tag was resolved, and the digest must outlive the node that resolved it.
// Counts are put off. Otherwise a large distribution would write its status once for each node.
func isUrgent(before, after *v1alpha1.ImagePrefetchStatus) bool {
	if before.ObservedGeneration != after.ObservedGeneration || len(before.Images) != len(after.Images) {
		return true
	}
	for i := range after.Images {
		if before.Images[i].Digest != after.Images[i].Digest || before.Images[i].Refresh != after.Images[i].Refresh {
			return true
		}
	}
	return len(transitions(before, after)) > 0
}

// transitions returns the conditions whose status or reason changed.
func transitions(before, after *v1alpha1.ImagePrefetchStatus) []metav1.Condition {
	var changed []metav1.Condition
	for _, condition := range after.Conditions {
		last := meta.FindStatusCondition(before.Conditions, condition.Type)
		if last == nil || last.Status != condition.Status || last.Reason != condition.Reason {
			changed = append(changed, condition)
		}
	}
	return changed
}

// statusWrite is the write of one status.
type statusWrite struct {
	before *v1alpha1.ImagePrefetchStatus
	object *v1alpha1.ImagePrefetch
}

// afterStatusWrite keeps what was written, and records the transitions.
func (r *Reconciler) afterStatusWrite(ctx context.Context, write statusWrite) {
	now, object := r.Clock.Now(), write.object
	r.writtenPrefetches.record(object, now)
	r.statusTimes.record(object.UID, now)
	for _, condition := range transitions(write.before, &object.Status) {
		last := meta.FindStatusCondition(write.before.Conditions, condition.Type)
		if last == nil && condition.Reason == v1alpha1.ReasonAsExpected {
			continue // a new object is not degraded; an event would say nothing
		}
		logf.FromContext(ctx).Info("Changed condition", "imagePrefetch", client.ObjectKeyFromObject(object),
			"type", condition.Type, "status", condition.Status, "reason", condition.Reason)
		r.Recorder.Eventf(object, nil, eventType(condition), condition.Reason, "Distribute", "%s", condition.Message)
	}
	if meta.IsStatusConditionTrue(object.Status.Conditions, v1alpha1.ConditionReady) &&
		!meta.IsStatusConditionTrue(write.before.Conditions, v1alpha1.ConditionReady) {
		since := object.CreationTimestamp
		if last := meta.FindStatusCondition(write.before.Conditions, v1alpha1.ConditionReady); last != nil {
			since = last.LastTransitionTime
		}
		r.Metrics.observeTimeToReady(now.Sub(since.Time))
	}
}

// eventType is Warning for a condition that somebody should look at.
func eventType(condition metav1.Condition) string {
	switch condition.Reason {
	case v1alpha1.ReasonAllNodesHoldImages, v1alpha1.ReasonFailuresTolerated,
		v1alpha1.ReasonWaitingForSeeds, v1alpha1.ReasonDistributing, v1alpha1.ReasonAsExpected:
		return corev1.EventTypeNormal
	}
	return corev1.EventTypeWarning
}

// nodesHave returns a function that reports whether any node has a digest under a name. It goes
// through the nodes at the first call, because in most passes there is none.
func nodesHave(nodes map[string]*observedNode) func(name, digest string) bool {
	type nameAndDigest struct{ name, digest string }
	present := sync.OnceValue(func() map[nameAndDigest]bool {
		all := map[nameAndDigest]bool{}
		for _, node := range nodes {
			for name, entry := range node.planNode.Entries {
				if entry.Status != nil && entry.Status.State == v1alpha1.ImagePresent {
					all[nameAndDigest{name, entry.Status.Digest}] = true
				}
			}
		}
		return all
	})
	return func(name, digest string) bool { return present()[nameAndDigest{name, digest}] }
}

// statusTimes is when each status was last written.
type statusTimes struct {
	last map[types.UID]time.Time
}

func (t *statusTimes) record(uid types.UID, now time.Time) {
	if t.last == nil {
		t.last = map[types.UID]time.Time{}
	}
	t.last[uid] = now
}

// due is when the status may be written again if only counts differ.
func (t *statusTimes) due(uid types.UID) time.Time {
	if last, ok := t.last[uid]; ok {
		return last.Add(statusInterval)
	}
	return time.Time{}
}

// keep drops all ImagePrefetches that are not alive.
func (t *statusTimes) keep(alive map[types.UID]bool) {
	maps.DeleteFunc(t.last, func(uid types.UID, _ time.Time) bool { return !alive[uid] })
}
