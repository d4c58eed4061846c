// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

// statusServer accepts statuses.
type statusServer struct {
	client.Client
	writes []*v1alpha1.ImagePrefetch
}

func (s *statusServer) Status() client.SubResourceWriter { return statusWriter{s: s} }

type statusWriter struct {
	client.SubResourceWriter
	s *statusServer
}

func (w statusWriter) Update(_ context.Context, object client.Object, _ ...client.SubResourceUpdateOption) error {
	w.s.writes = append(w.s.writes, object.(*v1alpha1.ImagePrefetch))
	return nil
}

func TestCountsArePutOffAndConditionsAreNot(t *testing.T) {
	server, clock, recorder := &statusServer{}, clocktesting.NewFakePassiveClock(noon), events.NewFakeRecorder(10)
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r := &Reconciler{Client: server, Clock: clock, Recorder: recorder, Metrics: metrics, Limits: plan.DefaultLimits()}
	s := prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b").node("c")
	// pass writes statuses at some time after noon, and returns whether it wrote, and when it is due again.
	pass := func(after time.Duration) (wrote bool, retryAt time.Time) {
		t.Helper()
		clock.SetTime(noon.Add(after))
		had := len(server.writes)
		seen := &observation{prefetches: []observedPrefetch{s.prefetch}, nodes: s.nodes}
		result := r.writeStatuses(t.Context(), seen, plan.Step{Prefetches: map[string]plan.Outcome{"shop/app": s.outcome}}, setResult{})
		if result.err != nil {
			t.Fatal(result.err)
		}
		if len(server.writes) > had {
			s.prefetch.object = server.writes[had]
		}
		return len(server.writes) > had, result.retryAt
	}
	bring := func(node string) {
		s.nodes[node].planNode.Entries[appV1] = plan.Entry{Wanted: &v1alpha1.NodeImage{}, Status: new(present(appV1, one))}
	}

	if wrote, _ := pass(0); !wrote {
		t.Error("the first status was not written")
	}
	bring("b")
	if wrote, retryAt := pass(10 * time.Millisecond); wrote || !retryAt.Equal(noon.Add(statusInterval)) {
		t.Errorf("a count that changed: written %v, again at %s", wrote, retryAt)
	}
	if wrote, retryAt := pass(statusInterval); !wrote || !retryAt.IsZero() {
		t.Errorf("a count that was put off: written %v, again at %s", wrote, retryAt)
	}
	if wrote, retryAt := pass(10 * statusInterval); wrote || !retryAt.IsZero() {
		t.Errorf("an equal status: written %v, again at %s", wrote, retryAt)
	}
	bring("c")
	if wrote, _ := pass(10*statusInterval + 1); !wrote {
		t.Error("a condition that changed was not written at once")
	}
	close(recorder.Events)
	var recorded []string
	for event := range recorder.Events {
		recorded = append(recorded, event)
	}
	if !slices.Equal(recorded, []string{
		"Normal Distributing 1 of 3 nodes have the image",
		"Normal AllNodesHoldImages 3 of 3 nodes have the image",
	}) {
		t.Errorf("recorded %q, want one event for each transition", recorded)
	}
}
