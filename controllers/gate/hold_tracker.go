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

// holdTracker keeps, for each held Deployment, when its hold began and the last event on it. After a
// restart it is empty, so that an event may be repeated.
type holdTracker struct {
	mu   sync.Mutex
	held map[types.NamespacedName]heldDeployment
	// ended has the versions of Deployments in which this controller ended their holds, until the
	// cache shows them.
	ended map[types.NamespacedName]string
}

type heldDeployment struct {
	// heldAt is zero until the first step is decided.
	heldAt time.Time
	// lastNotice is the last event, recorded at recordedAt.
	lastNotice notice
	recordedAt time.Time
	// lacking is a node that the hold waits for: as long as stillLacks reports true of it, nothing
	// has changed. Empty while any change may end the hold.
	lacking    string
	stillLacks func(*hold.Node) bool
	// rejections counts the patches that were rejected one after the other.
	rejections int
}

// notice is an event about what a Deployment waits for.
type notice struct{ reason, note string }

// track adds a hold, and returns the number of holds.
func (h *holdTracker) track(key types.NamespacedName, heldAt time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[types.NamespacedName]heldDeployment{}
	}
	entry := h.held[key]
	if !entry.heldAt.Equal(heldAt) { // a new hold has no events yet
		entry = heldDeployment{heldAt: heldAt}
	}
	h.held[key] = entry
	return len(h.held)
}

// waitFor notes the node that a hold waits for; empty for any. A hold that is not tracked yet is
// from then on, so that no change is missed while its first step is decided.
func (h *holdTracker) waitFor(key types.NamespacedName, node string, stillLacks func(*hold.Node) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[types.NamespacedName]heldDeployment{}
	}
	entry := h.held[key]
	entry.lacking, entry.stillLacks = node, stillLacks
	h.held[key] = entry
}

// endedHere reports whether this controller ended the last hold of a Deployment that it knew of, and
// the cache has yet to show it.
func (h *holdTracker) endedHere(key types.NamespacedName) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, found := h.ended[key]
	return found
}

// concernedBy are the holds that a change of nodes may end. The nodes that changed are as they are now;
// nil if they are gone.
func (h *holdTracker) concernedBy(changed map[string]*hold.Node) []types.NamespacedName {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []types.NamespacedName
	for key, entry := range h.held {
		node, has := changed[entry.lacking]
		if entry.lacking == "" || has && (node == nil || !entry.stillLacks(node)) {
			keys = append(keys, key)
		}
	}
	return keys
}

// countRejection counts one more rejection, and returns how many there were one after the other.
func (h *holdTracker) countRejection(key types.NamespacedName) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	entry := h.held[key]
	entry.rejections++
	h.held[key] = entry
	return entry.rejections
}

// end removes a hold that this controller ended in this version of its Deployment, and returns the
// number of those that remain.
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

// hasEnded reports whether the cache lags behind the end of a hold: whether version is older than
// the version of the Deployment in which this controller ended it.
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

// forget removes and returns the hold of a Deployment, if there is one, and returns the number of
// those that remain.
func (h *holdTracker) forget(key types.NamespacedName) (last heldDeployment, found bool, remaining int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, found = h.held[key]
	delete(h.held, key)
	delete(h.ended, key)
	return last, found, len(h.held)
}

// shouldRecord reports whether an event is due: at once for a new reason, and at most once in each
// interval for a new note. If the interval is not over, retryAt is its end, and zero otherwise.
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
	if step.End == "" {
		r.holds.waitFor(key, step.Lacking, step.StillLacks)
	}
}

// forgetHold counts a hold that ended without this controller.
func (r *Reconciler) forgetHold(key types.NamespacedName) {
	last, found, remaining := r.holds.forget(key)
	r.Metrics.holdsActive.Set(float64(remaining))
	if found && !last.heldAt.IsZero() {
		r.Metrics.observeEnd(hold.EndElsewhere, r.Clock.Since(last.heldAt))
	}
}
