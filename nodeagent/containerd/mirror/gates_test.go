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

func TestGatesLetOneThroughAtATimeForAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gates Gates
		var inside, most int
		var mu sync.Mutex
		var all sync.WaitGroup
		began := time.Now()
		for range 5 {
			all.Go(func() {
				leave, err := gates.enter(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Second) //nolint:forbidigo // of the synctest bubble's clock
				mu.Lock()
				inside--
				mu.Unlock()
				leave(0)
			})
		}
		all.Go(func() {
			leave, err := gates.enter(t.Context(), "b")
			if err != nil || time.Since(began) > 0 {
				t.Errorf("another key had to wait %v: %v", time.Since(began), err)
				return
			}
			leave(0)
		})
		all.Wait()
		if most != 1 || time.Since(began) != 5*time.Second {
			t.Errorf("%d at a time, done after %v", most, time.Since(began))
		}
		if len(gates.gates) != 0 {
			t.Errorf("%d gates are left", len(gates.gates))
		}
	})
}

func TestAKeyRestsAfterAMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gates Gates
		leave, err := gates.enter(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		leave(5 * time.Second)
		left := time.Now()

		short, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("impatient"))
		defer cancel()
		if _, err := gates.enter(short, "a"); err == nil || err.Error() != "impatient" {
			t.Errorf("entered while the key rested, or gave the wrong cause: %v", err)
		}
		if err := gates.rested(t.Context(), "a"); err != nil || time.Since(left) != 5*time.Second {
			t.Errorf("rested after %v: %v", time.Since(left), err)
		}
		if leave, err = gates.enter(t.Context(), "a"); err != nil || time.Since(left) != 5*time.Second {
			t.Fatalf("entered after %v: %v", time.Since(left), err)
		}
		leave(time.Second)
		time.Sleep(time.Minute) //nolint:forbidigo // of the synctest bubble's clock
		leave, err = gates.enter(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		leave(0)
		if len(gates.gates) != 0 {
			t.Errorf("%d gates are left", len(gates.gates))
		}
	})
}
