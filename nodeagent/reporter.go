// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// StatusWriter writes the status of the node's NodeImageSet.
type StatusWriter interface {
	// WriteStatus replaces the whole status of the object with that UID. It returns nil if that
	// object no longer exists.
	WriteStatus(ctx context.Context, uid types.UID, status v1alpha1.NodeImageSetStatus) error
}

// reporter decides when the status is written: one write at a time, with all changes until then,
// and none of a status that is already there.
type reporter struct {
	uid       types.UID
	written   v1alpha1.NodeImageSetStatus
	writtenAt time.Time
	// due is when to write; zero if nothing has changed.
	due      time.Time
	writing  bool
	failures int
}

// reset begins again with an object whose status this process has not written.
func (r *reporter) reset(now time.Time, uid types.UID, status v1alpha1.NodeImageSetStatus) {
	r.uid, r.due, r.failures = uid, time.Time{}, 0
	r.written, r.writtenAt = *status.DeepCopy(), now
}

// writeWithin has the status written after the delay, or earlier if another change asks for that.
func (r *reporter) writeWithin(now time.Time, delay time.Duration) {
	r.due = earliest(now.Add(delay), r.due)
}

// writeStatus starts to write the status if that is due. It returns when it will be due.
func (a *Agent) writeStatus(ctx context.Context, now time.Time) (wakeAt time.Time) {
	r := &a.reporter
	if r.uid == "" {
		r.due = time.Time{} // no object to write to
		return time.Time{}
	}
	heartbeat := a.heartbeatDue()
	due := earliest(earliest(r.due, a.progressDue()), heartbeat)
	if due.IsZero() || r.writing {
		return time.Time{}
	}
	if now.Before(due) {
		return due
	}
	r.due = time.Time{}
	status := a.status(now, &r.written)
	if equality.Semantic.DeepEqual(status, r.written) {
		a.postponeProgress(now)
		if heartbeat.IsZero() || now.Before(heartbeat) {
			return earliest(a.progressDue(), heartbeat)
		}
		status.LastHeartbeatTime = timestamp(now)
	}
	r.writing = true
	uid := r.uid
	a.work.Go(func() {
		err := a.Status.WriteStatus(ctx, uid, status)
		a.post(func() { a.onStatusWritten(uid, status, err) })
	})
	return time.Time{}
}

func (a *Agent) onStatusWritten(uid types.UID, status v1alpha1.NodeImageSetStatus, err error) {
	r := &a.reporter
	a.postponeProgress(time.Now())
	r.writing = false
	switch {
	case uid != r.uid:
	case err != nil:
		r.failures++
		a.Log.Error(err, "Failed to write status", "failures", r.failures)
		r.due = time.Now().Add(backoff(r.failures))
	default:
		r.failures = 0
		r.written, r.writtenAt = status, time.Now()
	}
}

// progressDue is when the progress of a running pull is to be reported next. A further try of a
// Failed entry is reported when it ends: by the count of attempts the controller sees that the
// reason is still valid.
func (a *Agent) progressDue() (due time.Time) {
	for _, e := range a.entries {
		if e.attempt != nil && !e.failed {
			due = earliest(due, e.attempt.progressDue)
		}
	}
	return due
}

// heartbeatDue is when the status is written even if nothing has changed, because an agent that
// says nothing of an unfinished image for longer counts as gone. It is zero if there is no such
// image, or if the last write failed: the next one is due after a backoff anyway.
func (a *Agent) heartbeatDue() time.Time {
	if a.reporter.failures > 0 {
		return time.Time{}
	}
	for _, e := range a.entries {
		if !e.removed && e.state().Unfinished() {
			return a.reporter.writtenAt.Add(v1alpha1.HeartbeatInterval)
		}
	}
	return time.Time{}
}

// postponeProgress sets when each pull's progress is reported again after a report. The interval
// counts from the report's arrival, so that a slow API server is not told more often.
func (a *Agent) postponeProgress(arrived time.Time) {
	for _, e := range a.entries {
		if att := e.attempt; att != nil {
			att.progressDue = arrived.Add(att.progressInterval)
			att.progressInterval = min(2*att.progressInterval, maxProgressInterval)
		}
	}
}
