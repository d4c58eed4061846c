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

// holds remembers what was last seen and said of each held Deployment. After a
// restart it begins anew: an event may then be repeated.
type holds struct {
	mu    sync.Mutex
	known map[types.NamespacedName]heldDeployment
	// ended are the versions in which holds were ended by us, until the cache shows it.
	ended map[types.NamespacedName]string
}

type heldDeployment struct {
	heldAt time.Time
	// told is the last event, and toldAt when it was recorded.
	told   notice
	toldAt time.Time
}

// notice is an event that tells for what a Deployment waits.
type notice struct{ reason, note string }

// see remembers a hold, and returns how many there are.
func (h *holds) see(key types.NamespacedName, heldAt time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = map[types.NamespacedName]heldDeployment{}
	}
	entry := h.known[key]
	if !entry.heldAt.Equal(heldAt) { // another hold than the last: it is told of anew
		entry = heldDeployment{heldAt: heldAt}
	}
	h.known[key] = entry
	return len(h.known)
}

// end remembers that a hold was ended by us, in this version of its Deployment, and
// returns how many are left.
func (h *holds) end(key types.NamespacedName, version string) (left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == nil {
		h.ended = map[types.NamespacedName]string{}
	}
	h.ended[key] = version
	delete(h.known, key)
	return len(h.known)
}

// hasEnded tells whether a version of a Deployment is older than the one in which we
// ended its hold: the cache lags behind.
func (h *holds) hasEnded(key types.NamespacedName, version string) bool {
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
func (h *holds) forget(key types.NamespacedName) (was heldDeployment, known bool, left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, known = h.known[key]
	delete(h.known, key)
	delete(h.ended, key)
	return was, known, len(h.known)
}

// tell decides whether a notice is news: at once when its reason changes, and not
// more often than every interval while only its numbers do. Zero is when there is
// nothing left to tell; else it is to be asked again at that time.
func (h *holds) tell(key types.NamespacedName, n notice, now time.Time, interval time.Duration) (news bool, again time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	entry := h.known[key]
	switch {
	case entry.told == n:
		return false, time.Time{}
	case entry.told.reason == n.reason && now.Before(entry.toldAt.Add(interval)):
		return false, entry.toldAt.Add(interval)
	}
	entry.told, entry.toldAt = n, now
	h.known[key] = entry
	return true, time.Time{}
}

func (r *Reconciler) noteHold(key types.NamespacedName, step hold.Step) {
	r.Metrics.active.Set(float64(r.holds.see(key, step.HeldAt)))
}

// gone notes that a hold ended without us.
func (r *Reconciler) gone(key types.NamespacedName) {
	was, known, left := r.holds.forget(key)
	r.Metrics.active.Set(float64(left))
	if known {
		r.Metrics.ended(hold.EndElsewhere, r.Clock.Since(was.heldAt))
	}
}
