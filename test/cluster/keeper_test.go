// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"testing"
	"time"
)

func TestNextRestartDelay(t *testing.T) {
	for _, test := range []struct {
		reason            string
		before, ran, want time.Duration
	}{
		{"the first comes soon", 0, time.Second, 100 * time.Millisecond},
		{"one that ends again waits twice as long", 100 * time.Millisecond, time.Second, 200 * time.Millisecond},
		{"but not for ever", 1900 * time.Millisecond, time.Second, 2 * time.Second},
		{"nor does it grow beyond that", 2 * time.Second, time.Second, 2 * time.Second},
		{"one that has run for long begins again", 2 * time.Second, 10 * time.Second, 100 * time.Millisecond},
	} {
		if got := nextRestartDelay(test.before, test.ran); got != test.want {
			t.Errorf("%s: %v, want %v", test.reason, got, test.want)
		}
	}
}
