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

// stable is how long a connection must last before the next reconnect is at once
// again: a runtime that comes up and falls over is not hammered.
const stable = time.Minute

// watch follows the runtime's changes, and reconnects for ever.
func (a *Agent) watch(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := a.Runtime.Watch(ctx,
			func() { a.post(a.reconnected) },
			func(c Change) { a.post(func() { a.changed(c) }) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > stable {
			failures = 0
		}
		failures++
		a.post(func() { a.lost(err) })
		select {
		case <-ctx.Done():
		case <-time.After(backoff(failures)):
		}
	}
}

// reconnected looks at everything again: what happened meanwhile was not seen.
func (a *Agent) reconnected() {
	a.Log.Info("Connected to container runtime")
	now := time.Now()
	a.connected.Store(true)
	a.lostAt, a.outage = time.Time{}, nil
	a.verify(now)
	for _, i := range a.images {
		if i.status.Reason == v1alpha1.ReasonRuntimeUnavailable {
			i.stumbles, i.due = 0, time.Time{}
		}
	}
	a.report.change(now, settle)
}

// restart is how long a runtime may be away without a word to the controller: a
// restart takes seconds, and does not end what runs on the node.
const restart = 30 * time.Second

// outage is why nothing can be done with the runtime: it is the wrong one, or has not
// answered for longer than a restart takes.
type outage struct{ reason, message string }

func (a *Agent) lost(err error) {
	a.Log.Error(err, "Lost container runtime")
	now := time.Now()
	a.connected.Store(false)
	if a.lostAt.IsZero() {
		a.lostAt = now
	}
	out := outage{v1alpha1.ReasonRuntimeUnavailable, message(err)}
	if errors.Is(err, ErrUnsupportedRuntime) {
		out.reason = v1alpha1.ReasonUnsupportedRuntime
	} else if now.Sub(a.lostAt) < restart {
		return
	}
	if a.outage == nil || a.outage.reason != out.reason { // the same error in other words is no news
		a.outage = &out
		a.report.change(now, batch)
	}
}

// recall has a new process begin with the outage that the last one told, so that
// nobody takes the node for mended meanwhile.
func (a *Agent) recall(conditions []metav1.Condition) {
	told := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if told != nil && told.Reason == v1alpha1.ReasonRuntimeUnavailable && !a.connected.Load() && a.outage == nil {
		a.outage = &outage{told.Reason, told.Message}
	}
}

// deletedPause is how long what was deleted is not pulled again. The kubelet deletes
// images under disk pressure and tells of that up to 10 s later, on the Node; the
// controller then takes what is missing from the spec.
const deletedPause = 15 * time.Second

// changed looks at the image that the name belongs to. A deletion also means room
// on the disk.
func (a *Agent) changed(c Change) {
	if c.Deleted {
		a.roomMade()
	}
	for _, i := range a.images {
		want, _ := i.wanted()
		if want == "" {
			continue
		}
		for _, name := range i.ref.Names(want) {
			if name != c.Name {
				continue
			}
			i.unchecked = true
			if c.Deleted && i.present {
				i.due = time.Now().Add(deletedPause)
			}
		}
	}
}

// roomMade has what did not fit tried again at once.
func (a *Agent) roomMade() {
	for _, i := range a.images {
		if i.status.Reason == v1alpha1.ReasonInsufficientDisk {
			i.due = time.Time{}
		}
	}
}
