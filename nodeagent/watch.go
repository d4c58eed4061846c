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

// stableConnection is how long a connection must last for the backoff to begin again at its
// shortest. So a runtime that crashes soon after each start is not asked all the time.
const stableConnection = time.Minute

// watch connects to the runtime and passes on its changes. It reconnects until ctx ends.
func (a *Agent) watch(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := a.Runtime.Watch(ctx,
			func() { a.post(a.onRuntimeConnected) },
			func(c Change) { a.post(func() { a.onNameChanged(c) }) },
			func(findings []Finding) { a.post(func() { a.onFound(findings) }) })
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

// onRuntimeConnected has all images checked: no event tells of changes before the connection.
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

// restartGrace is how long a runtime may be away before that is reported. A restart takes seconds,
// and ends no container.
const restartGrace = 30 * time.Second

// outage is why the agent cannot work with the runtime: it is too old, or has been away for longer
// than a restart takes.
type outage struct{ reason, message string }

// onRuntimeLost records that the runtime is away, and reports an outage if it is one.
func (a *Agent) onRuntimeLost(err error) {
	a.Log.Error(err, "Lost container runtime")
	now := time.Now()
	a.connected.Store(false)
	if a.lostAt.IsZero() {
		a.lostAt = now
	}
	found := outage{v1alpha1.ReasonRuntimeUnavailable, statusMessage(err)}
	if errors.Is(err, ErrUnsupportedRuntime) {
		found.reason = v1alpha1.ReasonUnsupportedRuntime
	} else if now.Sub(a.lostAt) < restartGrace {
		return
	}
	// The message may differ at each try: only another reason is worth a write.
	if a.outage == nil || a.outage.reason != found.reason {
		a.outage = &found
		a.reporter.writeWithin(now, batchDelay)
	}
}

// restoreOutage takes over the outage that the last process has reported. Otherwise a new process
// would report for a while that the node is well.
func (a *Agent) restoreOutage(conditions []metav1.Condition) {
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if ready != nil && ready.Reason == v1alpha1.ReasonRuntimeUnavailable && !a.connected.Load() && a.outage == nil {
		a.outage = &outage{ready.Reason, ready.Message}
	}
}

// repullDelay is how long a deleted image is not pulled again. Under disk pressure the kubelet
// deletes images, and up to 10 s later sets the condition on the Node; the controller then takes
// the missing images out of the spec.
const repullDelay = 15 * time.Second

// onNameChanged has the image checked that the name belongs to. A deletion also frees space on the
// disk.
func (a *Agent) onNameChanged(c Change) {
	if c.Deleted {
		a.retryInsufficientDisk()
	}
	for _, e := range a.entries {
		want, _ := e.wanted()
		if want == "" {
			if c.Name == e.ref.String() {
				e.retryAt = time.Time{} // it is what the node was looked through for
			}
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

// retryInsufficientDisk lets the images that did not fit on the disk be tried again at once.
func (a *Agent) retryInsufficientDisk() {
	for _, e := range a.entries {
		if e.status.Reason == v1alpha1.ReasonInsufficientDisk {
			e.retryAt = time.Time{}
		}
	}
}
