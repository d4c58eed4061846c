// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package requeue_test

import (
	"testing"
	"time"

	"github.com/sluice-dev/sluice/internal/requeue"
)

func TestAfter(t *testing.T) {
	noon := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		because string
		times   []time.Time
		want    time.Duration
	}{
		{"nothing is due", nil, 0},
		{"the zero time is never", []time.Time{{}, {}}, 0},
		{"a time beside a zero one", []time.Time{{}, noon.Add(time.Minute)}, time.Minute},
		{"the first of two times", []time.Time{noon.Add(time.Hour), noon.Add(time.Minute)}, time.Minute},
		{"a time that has come asks for a run at once", []time.Time{noon}, time.Millisecond},
		{"so does one that has passed", []time.Time{noon.Add(-time.Hour)}, time.Millisecond},
	} {
		t.Run(tt.because, func(t *testing.T) {
			if got := requeue.After(noon, tt.times...); got != tt.want {
				t.Errorf("After(noon, %v) = %s, want %s", tt.times, got, tt.want)
			}
		})
	}
}

func TestEarliest(t *testing.T) {
	first, second := time.Unix(1, 0), time.Unix(2, 0)
	if got := requeue.Earliest(second, time.Time{}, first); !got.Equal(first) {
		t.Errorf("got %s, want the first time that is not zero", got)
	}
	if got := requeue.Earliest(time.Time{}); !got.IsZero() {
		t.Errorf("got %s of no time at all", got)
	}
}
