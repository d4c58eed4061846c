// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/internal/hold"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func TestNoticesAreRecordedOnceAndNumbersNotTooOften(t *testing.T) {
	var tracker holdTracker
	key := types.NamespacedName{Namespace: "team", Name: "app"}
	tracker.track(key, noon)
	for _, step := range []struct {
		because string
		after   time.Duration
		heldAt  time.Time
		notice  notice
		due     bool
		retryAt time.Duration
	}{
		{"the first is recorded", 0, noon, notice{"Waiting", "3 of 12"}, true, 0},
		{"the same is not", time.Second, noon, notice{"Waiting", "3 of 12"}, false, 0},
		{"new numbers wait", 2 * time.Second, noon, notice{"Waiting", "4 of 12"}, false, 15 * time.Second},
		{"a new reason does not", 3 * time.Second, noon, notice{"Failing", "1 failed"}, true, 0},
		{"nor does the old one again", 4 * time.Second, noon, notice{"Waiting", "5 of 12"}, true, 0},
		{"new numbers come when their time is there", 19 * time.Second, noon, notice{"Waiting", "6 of 12"}, true, 0},
		{"another hold begins without a notice", 20 * time.Second, noon.Add(20 * time.Second), notice{"Waiting", "6 of 12"}, true, 0},
	} {
		tracker.track(key, step.heldAt)
		due, retryAt := tracker.shouldRecord(key, step.notice, noon.Add(step.after), 15*time.Second)
		var wait time.Duration
		if !retryAt.IsZero() {
			wait = retryAt.Sub(noon)
		}
		if due != step.due || wait != step.retryAt {
			t.Errorf("%s: due %t, again after %s; want %t, %s", step.because, due, wait, step.due, step.retryAt)
		}
	}
}

func TestHoldsAreCounted(t *testing.T) {
	var tracker holdTracker
	a, b := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
	if n := tracker.track(a, noon); n != 1 {
		t.Errorf("%d holds, want 1", n)
	}
	if n := tracker.track(b, noon); n != 2 {
		t.Errorf("%d holds, want 2", n)
	}
	if n := tracker.track(a, noon); n != 2 {
		t.Errorf("%d holds, want 2", n)
	}
	if last, ok, remaining := tracker.forget(a); !ok || !last.heldAt.Equal(noon) || remaining != 1 {
		t.Errorf("forgot %v, %t, %d remain", last, ok, remaining)
	}
	if _, ok, remaining := tracker.forget(a); ok || remaining != 1 {
		t.Errorf("forgot it twice, %d remain", remaining)
	}
}

func TestAnEndedHoldIsKnownUntilTheCacheShowsIt(t *testing.T) {
	var tracker holdTracker
	key := types.NamespacedName{Name: "a"}
	tracker.track(key, noon)
	if remaining := tracker.end(key, "10"); remaining != 0 {
		t.Errorf("%d holds remain", remaining)
	}
	for _, tt := range []struct {
		version string
		ended   bool
	}{{"9", true}, {"9", true}, {"10", false}, {"9", false}} {
		if got := tracker.hasEnded(key, tt.version); got != tt.ended {
			t.Errorf("version %s: ended %t, want %t", tt.version, got, tt.ended)
		}
	}
	tracker.end(key, "20")
	tracker.forget(key)
	if tracker.hasEnded(key, "19") {
		t.Error("the end of a hold that was forgotten is remembered")
	}
}

func TestWhoIsWokenByAChangeOfNodes(t *testing.T) {
	key := types.NamespacedName{Name: "a"}
	now := map[string]*hold.Node{"node-1": {}, "node-3": nil}
	still := func(n *hold.Node) bool { return n == now["node-1"] }
	no := func(*hold.Node) bool { return false }
	for _, tt := range []struct {
		reason string
		do     func(*holdTracker)
		woken  bool
	}{
		{"who is not held", func(*holdTracker) {}, false},
		{"whose first step is being decided", func(h *holdTracker) { h.waitFor(key, "", nil) }, true},
		{"who waits for the node", func(h *holdTracker) { h.track(key, noon); h.waitFor(key, "node-1", no) }, true},
		{"who waits for the node, which still lacks images", func(h *holdTracker) { h.track(key, noon); h.waitFor(key, "node-1", still) }, false},
		{"who waits for a node that is gone", func(h *holdTracker) { h.track(key, noon); h.waitFor(key, "node-3", still) }, true},
		{"who waits for another node", func(h *holdTracker) { h.track(key, noon); h.waitFor(key, "node-2", no) }, false},
		{"whose next step is being decided", func(h *holdTracker) { h.track(key, noon); h.waitFor(key, "node-2", no); h.waitFor(key, "", nil) }, true},
		{"who is tracked and waits for none", func(h *holdTracker) { h.track(key, noon) }, true},
		{"whose hold has ended", func(h *holdTracker) { h.track(key, noon); h.end(key, "1") }, false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			var tracker holdTracker
			tt.do(&tracker)
			keys := tracker.concernedBy(now)
			if woken := slices.Contains(keys, key); woken != tt.woken {
				t.Errorf("woken %t, want %t", woken, tt.woken)
			}
		})
	}
}
