// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// aims are what figures are to stay at or below. A benchmark that misses one fails.
var aims = map[string]float64{
	"api_writes_per_node_image":          3,
	"ready_latency_p99":                  500,  // ms
	"release_latency_p99":                1000, // ms
	"release_latency_5000_nodes_p99":     1000, // ms
	"webhook_latency_p99":                10,   // ms
	"webhook_latency_5000_nodes_p99":     10,   // ms
	"pull_vs_ctr_ratio":                  1.05,
	"all_nodes_vs_one_pull_ratio":        1.15,
	"all_nodes_vs_one_pull_ratio_spegel": 1.15,
}

// results are the figures of the runs of a benchmark, in the order in which they came.
type results struct {
	figures []*figure
}

// figure is a result of each run, and what they come to together.
type figure struct {
	name, unit string
	runs       []float64
	together   func() float64
}

// add has a figure of one run. Together the runs come to their median.
func (r *results) add(name string, value float64, unit string) {
	f := r.figure(name, unit)
	f.together = func() float64 { return median(f.runs) }
	f.runs = append(f.runs, value)
}

// count has a number of one run. Together the runs come to their sum.
func (r *results) count(name string, value int, unit string) {
	f := r.figure(name, unit)
	f.together = func() float64 {
		sum := 0.0
		for _, value := range f.runs {
			sum += value
		}
		return sum
	}
	f.runs = append(f.runs, float64(value))
}

// samples has what one run measured many times. Together, all samples of all runs are
// taken as those of one.
type samples struct {
	*results
	name, unit string
	all        []float64
}

// percentiles names samples of which the figures are percentiles; 100 is the greatest.
func (r *results) percentiles(name, unit string) *samples {
	return &samples{results: r, name: name, unit: unit}
}

// add has the samples of one run.
func (s *samples) add(run []float64, percents ...int) {
	s.all = append(s.all, run...)
	for _, percent := range percents {
		suffix := fmt.Sprintf("_p%d", percent)
		if percent == 100 {
			suffix = "_max"
		}
		f := s.figure(s.name+suffix, s.unit)
		f.together = func() float64 { return percentile(s.all, percent) }
		f.runs = append(f.runs, percentile(run, percent))
	}
}

func (r *results) figure(name, unit string) *figure {
	for _, f := range r.figures {
		if f.name == name {
			return f
		}
	}
	f := &figure{name: name, unit: unit}
	r.figures = append(r.figures, f)
	return f
}

// print writes a line for each figure, and returns the names of those that miss their aim.
func (r *results) print(out io.Writer) (missed []string) {
	for _, f := range r.figures {
		line := fmt.Sprintf("BENCH %s %s %s (%d runs: %s to %s", f.name, number(f.together()), f.unit,
			len(f.runs), number(slices.Min(f.runs)), number(slices.Max(f.runs)))
		if aim, ok := aims[f.name]; ok {
			verdict := "pass"
			if f.together() > aim {
				verdict = "FAIL"
				missed = append(missed, f.name)
			}
			line += fmt.Sprintf("; aim %s: %s, %d of %d runs", number(aim), verdict, f.atMost(aim), len(f.runs))
		}
		fmt.Fprintln(out, line+")")
	}
	return missed
}

// atMost counts the runs that met the aim.
func (f *figure) atMost(aim float64) (runs int) {
	for _, value := range f.runs {
		if value <= aim {
			runs++
		}
	}
	return runs
}

func number(value float64) string {
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.3f", value), "0"), ".")
}

func median(values []float64) float64 { return percentile(values, 50) }

// percentile is the smallest value that so many percent of them do not exceed.
func percentile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := (len(sorted)*percent + 99) / 100
	return sorted[max(rank, 1)-1]
}
