// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package requeue computes when a reconciler runs again if nothing wakes it before. In all of
// it the zero time means never.
package requeue

import "time"

// Earliest returns the first of the times that are not zero; zero if all are.
func Earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// After returns the delay from now to the earliest of the times, as the RequeueAfter of a
// reconcile.Result: 0 if all are zero, and at least a millisecond otherwise, because a delay
// of 0 asks for no other run.
func After(now time.Time, times ...time.Time) time.Duration {
	first := Earliest(times...)
	if first.IsZero() {
		return 0
	}
	return max(first.Sub(now), time.Millisecond)
}
