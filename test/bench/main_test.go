// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
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
		if got := percentile(c.values, c.percent); got != c.want {
			t.Errorf("p%d of %v is %v, want %v", c.percent, c.values, got, c.want)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		reason string
		names  []string
		want   []string
		fails  bool
	}{
		{"all when none is named", nil, []string{"writes", "latency", "gate", "pull", "spread", "spread-spegel", "uncoordinated"}, false},
		{"in their own order, each once", []string{"pull", "writes", "pull"}, []string{"writes", "pull"}, false},
		{"none when one is unknown", []string{"pull", "speed"}, nil, true},
	} {
		t.Run(c.reason, func(t *testing.T) {
			chosen, err := choose(c.names)
			var got []string
			for _, b := range chosen {
				got = append(got, b.name)
			}
			if (err != nil) != c.fails || !slices.Equal(got, c.want) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := options{uplink: 40, size: 200, nodes: 6, pairs: 5, rounds: 40}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*options){
		"no uplink":                  func(o *options) { o.uplink = 0 },
		"less than a MiB in a layer": func(o *options) { o.size = layers - 1 },
		"nobody to follow":           func(o *options) { o.nodes = 1 },
		"no pair":                    func(o *options) { o.pairs = 0 },
		"no round":                   func(o *options) { o.rounds = 0 },
	} {
		bad := good
		spoil(&bad)
		if bad.validate() == nil {
			t.Errorf("%s was let pass", name)
		}
	}
}

func TestReleaseBeforeReadyIsNoLatency(t *testing.T) {
	for _, c := range []struct {
		reason          string
		ready, released string
		fails           bool
	}{
		{"released after it was Ready, whatever the watches showed first", "99", "100", false},
		{"released before: the gate failed, and that is not zero", "100", "99", true},
		{"a version that is none", "", "99", true},
	} {
		if err := inOrder(c.ready, c.released); (err != nil) != c.fails {
			t.Errorf("%s: %v", c.reason, err)
		}
	}
}
