// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneRequestRunsAtATimeForAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var throttle Throttle
		var running, most int
		var mu sync.Mutex
		var all sync.WaitGroup
		began := time.Now()
		for range 5 {
			all.Go(func() {
				release, err := throttle.acquire(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(time.Second) //nolint:forbidigo // of the synctest bubble's clock
				mu.Lock()
				running--
				mu.Unlock()
				release(0)
			})
		}
		all.Go(func() {
			release, err := throttle.acquire(t.Context(), "b")
			if err != nil || time.Since(began) > 0 {
				t.Errorf("another key had to wait %v: %v", time.Since(began), err)
				return
			}
			release(0)
		})
		all.Wait()
		if most != 1 || time.Since(began) != 5*time.Second {
			t.Errorf("%d at a time, done after %v", most, time.Since(began))
		}
		if len(throttle.keys) != 0 {
			t.Errorf("%d keys are left", len(throttle.keys))
		}
	})
}

func TestAKeyIsLeftAloneAfterAMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var throttle Throttle
		release, err := throttle.acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		release(5 * time.Second)
		released := time.Now()

		short, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("impatient"))
		defer cancel()
		if _, err := throttle.acquire(short, "a"); err == nil || err.Error() != "impatient" {
			t.Errorf("acquired during the pause, or failed with the wrong cause: %v", err)
		}
		if err := throttle.waitReady(t.Context(), "a"); err != nil || time.Since(released) != 5*time.Second {
			t.Errorf("ready after %v: %v", time.Since(released), err)
		}
		if release, err = throttle.acquire(t.Context(), "a"); err != nil || time.Since(released) != 5*time.Second {
			t.Fatalf("acquired after %v: %v", time.Since(released), err)
		}
		release(time.Second)
		time.Sleep(time.Minute) //nolint:forbidigo // of the synctest bubble's clock
		release, err = throttle.acquire(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		release(0)
		if len(throttle.keys) != 0 {
			t.Errorf("%d keys are left", len(throttle.keys))
		}
	})
}

func TestAMirrorMayBeStartingUntilItWasSeenOrItsTimeIsOver(t *testing.T) {
	young := &Throttle{Began: time.Now(), StartTimeout: time.Hour, AfterSilence: time.Hour}
	if !young.mayBeStarting("a") {
		t.Error("it has never been seen, and cannot be starting")
	}
	young.noteAnswer("a")
	young.noteSilence("b", time.Now())
	if young.mayBeStarting("a") || young.mayBeStarting("b") {
		t.Error("it has answered, or taken a connection, and may be starting")
	}
	old := &Throttle{Began: time.Now().Add(-2 * time.Hour), StartTimeout: time.Hour}
	if old.mayBeStarting("a") {
		t.Error("its time is over, and it may be starting")
	}
}

func TestAMirrorIsSilentOnceItHasAnsweredNothingSince(t *testing.T) {
	throttle := &Throttle{AfterSilence: time.Hour}
	asked := time.Now()
	throttle.noteAnswer("a")
	if throttle.noteSilence("a", asked) || throttle.silent("a") {
		t.Error("it has answered another request since, and counts as silent")
	}
	if !throttle.noteSilence("a", time.Now()) || !throttle.silent("a") {
		t.Error("it has answered nothing since, and does not count as silent")
	}
	if throttle.silent("b") {
		t.Error("another mirror is silent as well")
	}
	throttle.noteAnswer("a")
	if throttle.silent("a") {
		t.Error("it has answered, and is still silent")
	}
}
