// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestADaemonIsLostWhenItNoLongerAnswers(t *testing.T) {
	const no, yes = false, true
	for _, tt := range []struct {
		reason  string
		replies []bool // to the first questions; the later ones stay without an answer
		asked   int
	}{
		{"it hangs from the beginning", nil, 3},
		{"it hangs later", []bool{yes, yes, yes}, 6},
		{"it is slow for a while, and again", []bool{no, no, yes, no, no, yes}, 9},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked, hung := 0, errors.New("no answer")
				began := time.Now()
				err := pingUntilLost(t.Context(), func(context.Context) error {
					asked++
					if asked <= len(tt.replies) && tt.replies[asked-1] {
						return nil
					}
					return hung
				})
				if !errors.Is(err, hung) || asked != tt.asked {
					t.Errorf("lost after %d questions: %v, want after %d", asked, err, tt.asked)
				}
				if took, want := time.Since(began), time.Duration(tt.asked)*pingInterval; took != want {
					t.Errorf("lost after %v, want %v", took, want)
				}
			})
		})
	}
	t.Run("the context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if err := pingUntilLost(ctx, func(context.Context) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("pingUntilLost: %v", err)
			}
		})
	})
}
