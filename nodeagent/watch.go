// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// stableConnection is how long a connection must last before the next reconnect is at once
// again: a runtime that comes up and falls over is not hammered.
const stableConnection = time.Minute

// watch follows the runtime's changes, and reconnects for ever.
func (a *Agent) watch(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := a.Runtime.Watch(ctx,
			func() { a.post(a.onRuntimeConnected) },
			func(c Change) { a.post(func() { a.onNameChanged(c) }) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > stableConnection {
			failures = 0
		}
		failures++
		a.post(func() { a.onRuntimeLost(err) })
		select {
		case <-ctx.Done():
		case <-time.After(backoff(failures)):
		}
	}
}

// onRuntimeConnected looks at everything again: what happened meanwhile was not seen.
func (a *Agent) onRuntimeConnected() {
	a.Log.Info("Connected to container runtime")
	now := time.Now()
	a.connected.Store(true)
	a.lostAt, a.outage = time.Time{}, nil
	a.verifyAll(now)
	for _, e := range a.entries {
		if e.status.Reason == v1alpha1.ReasonRuntimeUnavailable {
			e.consecutiveFailures, e.retryAt = 0, time.Time{}
		}
	}
	a.reporter.writeWithin(now, transientDelay)
}

// restartGrace is how long a runtime may be away without a word to the controller: a
// restart takes seconds, and does not end what runs on the node.
const restartGrace = 30 * time.Second

// outage is why nothing can be done with the runtime: it is the wrong one, or has not
// answered for longer than a restart takes.
type outage struct{ reason, message string }

func (a *Agent) onRuntimeLost(err error) {
	a.Log.Error(err, "Lost container runtime")
	now := time.Now()
	a.connected.Store(false)
	if a.lostAt.IsZero() {
		a.lostAt = now
	}
	out := outage{v1alpha1.ReasonRuntimeUnavailable, message(err)}
	if errors.Is(err, ErrUnsupportedRuntime) {
		out.reason = v1alpha1.ReasonUnsupportedRuntime
	} else if now.Sub(a.lostAt) < restartGrace {
		return
	}
	if a.outage == nil || a.outage.reason != out.reason { // the same error in other words is no news
		a.outage = &out
		a.reporter.writeWithin(now, batchDelay)
	}
}

// restoreOutage has a new process begin with the outage that the last one told, so that
// nobody takes the node for mended meanwhile.
func (a *Agent) restoreOutage(conditions []metav1.Condition) {
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if ready != nil && ready.Reason == v1alpha1.ReasonRuntimeUnavailable && !a.connected.Load() && a.outage == nil {
		a.outage = &outage{ready.Reason, ready.Message}
	}
}

// repullDelay is how long what was deleted is not pulled again. The kubelet deletes
// images under disk pressure and tells of that up to 10 s later, on the Node; the
// controller then takes what is missing from the spec.
const repullDelay = 15 * time.Second

// onNameChanged looks at the image that the name belongs to. A deletion also means room
// on the disk.
func (a *Agent) onNameChanged(c Change) {
	if c.Deleted {
		a.retryInsufficientDisk()
	}
	for _, e := range a.entries {
		want, _ := e.wanted()
		if want == "" {
			continue
		}
		for _, name := range e.ref.Names(want) {
			if name != c.Name {
				continue
			}
			e.needsCheck = true
			if c.Deleted && e.present {
				e.retryAt = time.Now().Add(repullDelay)
			}
		}
	}
}

// retryInsufficientDisk has what did not fit tried again at once.
func (a *Agent) retryInsufficientDisk() {
	for _, e := range a.entries {
		if e.status.Reason == v1alpha1.ReasonInsufficientDisk {
			e.retryAt = time.Time{}
		}
	}
}
