// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
)

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		reason string
		names  []string
		want   []string
		fails  bool
	}{
		{"all when none is named", nil, []string{"writes", "latency", "gate", "cost", "pull", "spread", "spread-spegel", "uncoordinated"}, false},
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
	good := options{uplink: 40, size: 200, nodes: 6, runs: 5, rounds: 40}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*options){
		"no uplink":                  func(o *options) { o.uplink = 0 },
		"less than a MiB in a layer": func(o *options) { o.size = layers - 1 },
		"nobody to follow":           func(o *options) { o.nodes = 1 },
		"no run":                     func(o *options) { o.runs = 0 },
		"no round":                   func(o *options) { o.rounds = 0 },
	} {
		bad := good
		spoil(&bad)
		if bad.validate() == nil {
			t.Errorf("%s was let pass", name)
		}
	}
}

func TestReleaseBeforeTheEvidenceIsNoLatency(t *testing.T) {
	for _, c := range []struct {
		reason             string
		reported, released string
		fails              bool
	}{
		{"released after the report, whatever the watches showed first", "99", "100", false},
		{"released before: the gate failed, and that is not zero", "100", "99", true},
		{"a version that is none", "", "99", true},
	} {
		if err := inOrder(c.reported, c.released); (err != nil) != c.fails {
			t.Errorf("%s: %v", c.reason, err)
		}
	}
}

func TestRequestsDiffer(t *testing.T) {
	stored := []appsv1.Deployment{*gatedBy("one", "registry/one:v1"), *gatedBy("two", "registry/two:v1")}
	seen := map[string]bool{}
	asked := map[string]bool{}
	for run := range 2 {
		bodies, err := requests(stored, run)
		if err != nil || len(bodies) != reviews {
			t.Fatalf("%d requests, %v", len(bodies), err)
		}
		for i, body := range bodies {
			var r admissionv1.AdmissionReview
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			if want := stored[i%2].Name; r.Request.Name != want {
				t.Errorf("request %d is about %s, want %s", i, r.Request.Name, want)
			}
			seen[string(r.Request.UID)] = true
			asked[string(r.Request.Object.Raw)] = true
		}
	}
	if len(seen) != 2*reviews || len(asked) != 2*reviews {
		t.Errorf("of %d requests %d have a UID of their own, and %d an object", 2*reviews, len(seen), len(asked))
	}
	if _, err := requests(nil, 0); err == nil {
		t.Error("there were requests about nothing")
	}
}

// The document says of each figure what its aim is, as the benchmark judges it.
func TestTheDocumentShowsTheAims(t *testing.T) {
	document, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]float64{}
	_, table, _ := strings.Cut(string(document), "## The aims\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) == 5 && strings.Contains(cells[1], "`") {
			most, err := strconv.ParseFloat(strings.TrimSpace(cells[2]), 64)
			if err != nil {
				t.Error(err)
			}
			shown[strings.Trim(cells[1], " `")] = most
		}
	}
	if !maps.Equal(shown, aims) {
		t.Errorf("docs/benchmarks.md shows the aims %v, want %v", shown, aims)
	}
}
