// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/sluice-dev/sluice/internal/hold"
)

// holdTracker remembers what was last seen and said of each held Deployment. After a
// restart it begins anew: an event may then be repeated.
type holdTracker struct {
	mu   sync.Mutex
	held map[types.NamespacedName]heldDeployment
	// ended are the versions in which holds were ended by us, until the cache shows it.
	ended map[types.NamespacedName]string
}

type heldDeployment struct {
	heldAt time.Time
	// lastNotice is the last event, and toldAt when it was recorded.
	lastNotice notice
	recordedAt time.Time
}

// notice is an event that tells for what a Deployment waits.
type notice struct{ reason, note string }

// track remembers a hold, and returns how many there are.
func (h *holdTracker) track(key types.NamespacedName, heldAt time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[types.NamespacedName]heldDeployment{}
	}
	entry := h.held[key]
	if !entry.heldAt.Equal(heldAt) { // another hold than the last: it is told of anew
		entry = heldDeployment{heldAt: heldAt}
	}
	h.held[key] = entry
	return len(h.held)
}

// end remembers that a hold was ended by us, in this version of its Deployment, and
// returns how many are left.
func (h *holdTracker) end(key types.NamespacedName, version string) (remaining int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == nil {
		h.ended = map[types.NamespacedName]string{}
	}
	h.ended[key] = version
	delete(h.held, key)
	return len(h.held)
}

// hasEnded tells whether a version of a Deployment is older than the one in which we
// ended its hold: the cache lags behind.
func (h *holdTracker) hasEnded(key types.NamespacedName, version string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	ended, found := h.ended[key]
	if !found {
		return false
	}
	if order, err := resourceversion.CompareResourceVersion(version, ended); err == nil && order < 0 {
		return true
	}
	delete(h.ended, key)
	return false
}

// forget returns the hold that was known, if one was, and how many are left.
func (h *holdTracker) forget(key types.NamespacedName) (was heldDeployment, found bool, remaining int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, found = h.held[key]
	delete(h.held, key)
	delete(h.ended, key)
	return was, found, len(h.held)
}

// shouldRecord decides whether a notice is news: at once when its reason changes, and not
// more often than every interval while only its numbers do. Zero is when there is
// nothing left to tell; else it is to be asked again at that time.
func (h *holdTracker) shouldRecord(key types.NamespacedName, next notice, now time.Time, interval time.Duration) (due bool, retryAt time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.held[key]
	switch {
	case last.lastNotice == next:
		return false, time.Time{}
	case last.lastNotice.reason == next.reason && now.Before(last.recordedAt.Add(interval)):
		return false, last.recordedAt.Add(interval)
	}
	last.lastNotice, last.recordedAt = next, now
	h.held[key] = last
	return true, time.Time{}
}

func (r *Reconciler) trackHold(key types.NamespacedName, step hold.Step) {
	r.Metrics.holdsActive.Set(float64(r.holds.track(key, step.HeldAt)))
}

// forgetHold notes that a hold ended without us.
func (r *Reconciler) forgetHold(key types.NamespacedName) {
	was, known, left := r.holds.forget(key)
	r.Metrics.holdsActive.Set(float64(left))
	if known {
		r.Metrics.observeEnd(hold.EndElsewhere, r.Clock.Since(was.heldAt))
	}
}
