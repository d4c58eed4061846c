// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package figures prints what is measured, one line per figure:
//
//	BENCH <name> <value> <unit> (<n> runs: <least> to <greatest>; aim <most>: <pass or FAIL>, <m> of <n> runs)
package figures

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Results are the figures of the runs of a benchmark, in the order in which they came.
type Results struct {
	figures []*figure
}

// figure is a result of each run, and what they come to together.
type figure struct {
	name, unit string
	runs       []float64
	together   func() float64
}

// Add has a figure of one run. Together the runs come to their median.
func (r *Results) Add(name string, value float64, unit string) {
	f := r.figure(name, unit)
	f.together = func() float64 { return median(f.runs) }
	f.runs = append(f.runs, value)
}

// Count has a number of one run. Together the runs come to their sum.
func (r *Results) Count(name string, value int, unit string) {
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

// Samples has what one run measured many times. Together, all samples of all runs are
// taken as those of one.
type Samples struct {
	results    *Results
	name, unit string
	all        []float64
}

// Percentiles names samples of which the figures are percentiles; 100 is the greatest.
func (r *Results) Percentiles(name, unit string) *Samples {
	return &Samples{results: r, name: name, unit: unit}
}

// Add has the samples of one run.
func (s *Samples) Add(run []float64, percents ...int) {
	s.all = append(s.all, run...)
	for _, percent := range percents {
		suffix := fmt.Sprintf("_p%d", percent)
		if percent == 100 {
			suffix = "_max"
		}
		f := s.results.figure(s.name+suffix, s.unit)
		f.together = func() float64 { return Percentile(s.all, percent) }
		f.runs = append(f.runs, Percentile(run, percent))
	}
}

func (r *Results) figure(name, unit string) *figure {
	for _, f := range r.figures {
		if f.name == name {
			return f
		}
	}
	f := &figure{name: name, unit: unit}
	r.figures = append(r.figures, f)
	return f
}

// Print writes a line for each figure, and returns the names of those that miss their aim: the value
// that they are to stay at or below.
func (r *Results) Print(out io.Writer, aims map[string]float64) (missed []string) {
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

func median(values []float64) float64 { return Percentile(values, 50) }

// Percentile is the smallest value that so many percent of them do not exceed.
func Percentile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := (len(sorted)*percent + 99) / 100
	return sorted[max(rank, 1)-1]
}
