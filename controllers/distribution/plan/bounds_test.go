// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"runtime"
	"testing"
)

// TestMemoryGrowsLinearly counts the allocations of a plan and their bytes: four times the nodes
// take about four times as much, not sixteen times, and so do four times the prefetches.
func TestMemoryGrowsLinearly(t *testing.T) {
	const few, many = 500, 2000
	for _, c := range []struct {
		stage        string
		small, large State
	}{
		{"begin", distributing(few, 5, 1, 0), distributing(many, 5, 1, 0)},
		{"middle", distributing(few, 5, 1, 0.5), distributing(many, 5, 1, 0.5)},
		{"end", distributing(few, 5, 1, 1), distributing(many, 5, 1, 1)},
		{"many prefetches", distributing(few, 5, 20, 0.5), distributing(many, 5, 20, 0.5)},
		{"replicas", withReplicasOnHalf(distributing(few, 5, 20, 0.5)), withReplicasOnHalf(distributing(many, 5, 20, 0.5))},
		{"more images than the sets have room for", exceedingCapacity(60), exceedingCapacity(240)},
	} {
		t.Run(c.stage, func(t *testing.T) {
			memory := func(state State) (pieces, bytes float64) {
				limits := DefaultLimits()
				Next(state, limits)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				Next(state, limits)
				runtime.ReadMemStats(&after)
				return float64(after.Mallocs - before.Mallocs), float64(after.TotalAlloc - before.TotalAlloc)
			}
			pieces, bytes := memory(c.small)
			p, b := memory(c.large)
			if p > 5*pieces || b > 5*bytes {
				t.Errorf("%.0f allocations of %.0f bytes became %.0f of %.0f", pieces, bytes, p, b)
			}
		})
	}
}
