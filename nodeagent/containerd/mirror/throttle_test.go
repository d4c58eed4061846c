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
