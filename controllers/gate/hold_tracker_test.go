// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func TestNoticesAreToldOnceAndNumbersNotTooOften(t *testing.T) {
	var known holdTracker
	key := types.NamespacedName{Namespace: "team", Name: "app"}
	known.track(key, noon)
	for _, step := range []struct {
		because string
		after   time.Duration
		heldAt  time.Time
		notice  notice
		news    bool
		again   time.Duration
	}{
		{"the first is news", 0, noon, notice{"Waiting", "3 of 12"}, true, 0},
		{"the same is none", time.Second, noon, notice{"Waiting", "3 of 12"}, false, 0},
		{"new numbers wait", 2 * time.Second, noon, notice{"Waiting", "4 of 12"}, false, 15 * time.Second},
		{"a new reason does not", 3 * time.Second, noon, notice{"Failing", "1 failed"}, true, 0},
		{"nor does the old one again", 4 * time.Second, noon, notice{"Waiting", "5 of 12"}, true, 0},
		{"new numbers come when their time is there", 19 * time.Second, noon, notice{"Waiting", "6 of 12"}, true, 0},
		{"another hold is told of anew", 20 * time.Second, noon.Add(20 * time.Second), notice{"Waiting", "6 of 12"}, true, 0},
	} {
		known.track(key, step.heldAt)
		news, again := known.shouldRecord(key, step.notice, noon.Add(step.after), 15*time.Second)
		var wait time.Duration
		if !again.IsZero() {
			wait = again.Sub(noon)
		}
		if news != step.news || wait != step.again {
			t.Errorf("%s: news %t, again at %s; want %t, %s", step.because, news, wait, step.news, step.again)
		}
	}
}

func TestHoldsAreCounted(t *testing.T) {
	var known holdTracker
	a, b := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
	if n := known.track(a, noon); n != 1 {
		t.Errorf("%d holds, want 1", n)
	}
	if n := known.track(b, noon); n != 2 {
		t.Errorf("%d holds, want 2", n)
	}
	if n := known.track(a, noon); n != 2 {
		t.Errorf("%d holds, want 2", n)
	}
	if was, ok, left := known.forget(a); !ok || !was.heldAt.Equal(noon) || left != 1 {
		t.Errorf("forgot %v, %t, %d left", was, ok, left)
	}
	if _, ok, left := known.forget(a); ok || left != 1 {
		t.Errorf("forgot it twice, %d left", left)
	}
}

func TestAnEndedHoldIsKnownUntilTheCacheShowsIt(t *testing.T) {
	var known holdTracker
	key := types.NamespacedName{Name: "a"}
	known.track(key, noon)
	if left := known.end(key, "10"); left != 0 {
		t.Errorf("%d holds left", left)
	}
	for _, tt := range []struct {
		version string
		ended   bool
	}{{"9", true}, {"9", true}, {"10", false}, {"9", false}} {
		if got := known.hasEnded(key, tt.version); got != tt.ended {
			t.Errorf("version %s: ended %t, want %t", tt.version, got, tt.ended)
		}
	}
	known.end(key, "20")
	known.forget(key)
	if known.hasEnded(key, "19") {
		t.Error("what is gone is remembered")
	}
}
