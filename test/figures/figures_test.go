// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"slices"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // 1 to 100, not in order
	}
	for _, c := range []struct {
		values  []float64
		percent int
		want    float64
	}{
		{[]float64{3, 1, 2}, 50, 2},
		{[]float64{4, 1, 3, 2}, 50, 2}, // the lower middle: a value that occurred
		{[]float64{7}, 50, 7},
		{[]float64{7}, 99, 7},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:40], 99, 100}, // of few values the greatest
		{hundred, 100, 100},
	} {
		if got := Percentile(c.values, c.percent); got != c.want {
			t.Errorf("p%d of %v is %v, want %v", c.percent, c.values, got, c.want)
		}
	}
}

func TestResults(t *testing.T) {
	aims := map[string]float64{"all_nodes_vs_one_pull_ratio": 1.15, "webhook_latency_p99": 10}
	for _, c := range []struct {
		reason string
		gather func(*Results)
		want   []string
		missed []string
	}{
		{"a figure is the median of its runs, with their range", func(r *Results) {
			for _, value := range []float64{3, 1, 2.5} {
				r.Add("some_time", value, "s")
			}
		}, []string{"BENCH some_time 2.5 s (3 runs: 1 to 3)"}, nil},
		{"the aim holds for the median; the runs that met it are counted", func(r *Results) {
			for _, value := range []float64{1.1, 1.2, 1.0} {
				r.Add("all_nodes_vs_one_pull_ratio", value, "ratio")
			}
		}, []string{"BENCH all_nodes_vs_one_pull_ratio 1.1 ratio (3 runs: 1 to 1.2; aim 1.15: pass, 2 of 3 runs)"}, nil},
		{"an aim that is missed is said, and returned", func(r *Results) {
			for _, value := range []float64{1.1, 1.2, 1.16} {
				r.Add("all_nodes_vs_one_pull_ratio", value, "ratio")
			}
		}, []string{"BENCH all_nodes_vs_one_pull_ratio 1.16 ratio (3 runs: 1.1 to 1.2; aim 1.15: FAIL, 1 of 3 runs)"},
			[]string{"all_nodes_vs_one_pull_ratio"}},
		{"what is counted is summed", func(r *Results) {
			r.Count("turns", 2, "turns")
			r.Count("turns", 0, "turns")
		}, []string{"BENCH turns 2 turns (2 runs: 0 to 2)"}, nil},
		{"percentiles are of the samples of all runs; the range is that of the runs", func(r *Results) {
			s := r.Percentiles("webhook_latency", "ms")
			s.Add([]float64{1, 2, 3}, 50, 99, 100)
			s.Add([]float64{-4, 5, 6, 11}, 50, 99, 100)
		}, []string{
			"BENCH webhook_latency_p50 3 ms (2 runs: 2 to 5)",
			"BENCH webhook_latency_p99 11 ms (2 runs: 3 to 11; aim 10: FAIL, 1 of 2 runs)",
			"BENCH webhook_latency_max 11 ms (2 runs: 3 to 11)",
		}, []string{"webhook_latency_p99"}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			var r Results
			c.gather(&r)
			var out strings.Builder
			missed := r.Print(&out, aims)
			if got := strings.Split(strings.TrimSpace(out.String()), "\n"); !slices.Equal(got, c.want) || !slices.Equal(missed, c.missed) {
				t.Errorf("printed\n%s\nmissed %v", out.String(), missed)
			}
		})
	}
}
