// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/figures"
)

func TestMain(m *testing.M) {
	discardLogs()
	os.Exit(m.Run())
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		reason string
		names  []string
		want   []string
		fails  bool
	}{
		{"all when none is named", nil, []string{"fill", "more", "failing", "restart", "shared", "join", "more-on-100"}, false},
		{"in their own order, each once", []string{"join", "fill", "join"}, []string{"fill", "join"}, false},
		{"none when one is unknown", []string{"fill", "less"}, nil, true},
	} {
		t.Run(c.reason, func(t *testing.T) {
			chosen, err := choose(c.names)
			var got []string
			for _, one := range chosen {
				got = append(got, one.name)
			}
			if (err != nil) != c.fails || !slices.Equal(got, c.want) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := options{nodes: 2, bound: time.Minute, idle: time.Second}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*options){
		"no peer":        func(o *options) { o.nodes = 1 },
		"no time":        func(o *options) { o.bound = 0 },
		"no time of two": func(o *options) { o.idle = 0 },
	} {
		bad := good
		spoil(&bad)
		if bad.validate() == nil {
			t.Errorf("%s was let pass", name)
		}
	}
}

func TestBackgroundIsLeftOut(t *testing.T) {
	all := spending{apiCPU: 10, etcdCPU: 5, controllerCPU: 3, written: 1000, specWrites: 40, statusWrites: 30}
	heartbeat := spending{apiCPU: 0.5, etcdCPU: 0.25, written: 20}.dividedBy(2)
	if got, want := all.plus(-4, heartbeat), (spending{9, 4.5, 3, 960, 40, 30}); got != want {
		t.Errorf("10 s with 4 heartbeats are %+v without them, want %+v", got, want)
	}
	if got := all.dividedBy(0); got != all {
		t.Errorf("divided by the number of things of which there were none: %+v", got)
	}
}

const exposition = `# TYPE apiserver_request_total counter
apiserver_request_total{group="sluice.dev",resource="nodeimagesets",subresource="",verb="PUT",code="200"} 7
apiserver_request_total{group="sluice.dev",resource="nodeimagesets",subresource="",verb="POST",code="201"} 2
apiserver_request_total{group="sluice.dev",resource="nodeimagesets",subresource="",verb="PUT",code="409"} 3
apiserver_request_total{group="sluice.dev",resource="nodeimagesets",subresource="",verb="WATCH",code="200"} 5
apiserver_request_total{group="sluice.dev",resource="nodeimagesets",subresource="status",verb="APPLY",code="200"} 11
apiserver_request_total{group="",resource="nodes",subresource="status",verb="APPLY",code="200"} 13
# TYPE controller_runtime_reconcile_time_seconds histogram
controller_runtime_reconcile_time_seconds_bucket{controller="distribution",le="0.1"} 60
controller_runtime_reconcile_time_seconds_bucket{controller="distribution",le="0.2"} 99
controller_runtime_reconcile_time_seconds_bucket{controller="distribution",le="0.5"} 99
controller_runtime_reconcile_time_seconds_bucket{controller="distribution",le="+Inf"} 100
controller_runtime_reconcile_time_seconds_sum{controller="distribution"} 10
controller_runtime_reconcile_time_seconds_count{controller="distribution"} 100
`

func TestMetrics(t *testing.T) {
	all, err := parseMetrics([]byte(exposition))
	if err != nil {
		t.Fatal(err)
	}
	if specs, statuses := writes(all, ""), writes(all, "status"); specs != 9 || statuses != 11 {
		t.Errorf("%v specs and %v statuses were written, want 9 and 11: a conflict and a watch are no writes", specs, statuses)
	}
	after := passes(&usage{passes: all})
	for _, c := range []struct {
		reason string
		before map[float64]float64
		want   float64
	}{
		{"the bound of the bucket that has the 99th of 100", nil, 0.2},
		{"what was counted before is left out", map[float64]float64{0.1: 60, 0.2: 60, 0.5: 60, math.Inf(1): 61}, 0.2},
		{"no histogram", after, 0},
	} {
		now := after
		if c.want == 0 {
			now = nil
		}
		if got := quantile(c.before, now); got != c.want {
			t.Errorf("%s: %v, want %v", c.reason, got, c.want)
		}
	}
}

func TestTruth(t *testing.T) {
	began := time.Now()
	has := func(images ...string) (reported []v1alpha1.NodeImageStatus) {
		for _, image := range images {
			reported = append(reported, v1alpha1.NodeImageStatus{Name: image, State: v1alpha1.ImagePresent})
		}
		return append(reported, v1alpha1.NodeImageStatus{Name: "b", State: v1alpha1.ImagePulling})
	}
	known := newTruth()
	known.record("early", has("a", "b"), began) // nobody has asked for anything
	known.expect([]v1alpha1.ImageReference{"a", "b"})
	known.record("one", has("a"), began)
	if ready := known.ready(); ready != 0 {
		t.Errorf("%d nodes are ready, and one image of two is on one", ready)
	}
	known.record("one", has("a", "b"), began.Add(time.Second))
	known.record("two", has("b", "a", "c"), began.Add(3*time.Second))
	known.record("one", has("a", "b"), began.Add(4*time.Second))
	if ready := known.ready(); ready != 2 || !known.isReady("two") || known.isReady("early") {
		t.Errorf("%d nodes are ready, want one and two", ready)
	}
	for count, want := range []time.Duration{4 * time.Second, 2 * time.Second, 0} {
		if got := known.behind(count, began.Add(5*time.Second)); got != want {
			t.Errorf("a status that says %d of 2 has been wrong for %v, want %v", count, got, want)
		}
	}
}

func TestRuntimeForgetsNothing(t *testing.T) {
	parse := func(name string) imageref.Reference {
		ref, err := imageref.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	node := newNodeRuntime(failEvery)
	app, lost := parse(registry+"/fill/app:v1"), parse(registry+"/"+failing+"/app:v1")
	result, err := node.Pull(t.Context(), nodeagent.PullRequest{Ref: app, Policy: v1alpha1.RegistryPolicyDefault}, func(nodeagent.Progress) {})
	if err != nil || result.Digest.String() != digestOf(app.String()) {
		t.Fatalf("got %+v, %v", result, err)
	}
	if _, err := node.Pull(t.Context(), nodeagent.PullRequest{Ref: lost}, func(nodeagent.Progress) {}); err == nil {
		t.Error("the image came on a node that is not to get it")
	}
	for ref, want := range map[imageref.Reference]bool{app: true, lost: false, parse(registry + "/" + held + "/app@" + digestOf("")): true} {
		d := ref.Digest()
		if d == "" {
			d = digest.FromString(ref.String())
		}
		if got, err := node.Check(t.Context(), ref, d); err != nil || got.Present != want {
			t.Errorf("%s: present is %t, %v", ref, got.Present, err)
		}
	}
}

// All cases are long. What they are made of is seen with three nodes: a distribution by the real
// controllers, and the preparation that goes without them.
func TestScale(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r, err := start(ctx, &options{nodes: 3, bound: 2 * time.Minute, idle: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}()
	chosen, err := choose([]string{"fill", "restart", "more-on-100", "join"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(background, chosen, []scenario{database}) {
		var results figures.Results
		if err := c.run(ctx, r, &results); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var out strings.Builder
		_ = results.Print(&out, nil) // three nodes have no aims
		t.Log(out.String())
	}
}
