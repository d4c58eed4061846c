// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// leaseManager keeps leases as containerd does, but does not let them expire.
type leaseManager struct {
	leases    map[string]leases.Lease
	resources map[string][]leases.Resource
}

func (m *leaseManager) Create(_ context.Context, opts ...leases.Opt) (leases.Lease, error) {
	lease := leases.Lease{CreatedAt: time.Now()}
	for _, opt := range opts {
		if err := opt(&lease); err != nil {
			return lease, err
		}
	}
	if _, ok := m.leases[lease.ID]; ok {
		return lease, errdefs.ErrAlreadyExists
	}
	m.leases[lease.ID] = lease
	return lease, nil
}

func (m *leaseManager) Delete(_ context.Context, lease leases.Lease, _ ...leases.DeleteOpt) error {
	delete(m.leases, lease.ID)
	delete(m.resources, lease.ID)
	return nil
}

func (m *leaseManager) List(_ context.Context, filters ...string) (found []leases.Lease, _ error) {
	for _, lease := range m.leases {
		image := lease.Labels[leaseLabel]
		if slices.Contains(filters, fmt.Sprintf("labels.%q", leaseLabel)) || slices.Contains(filters, fmt.Sprintf("labels.%q==%q", leaseLabel, image)) {
			found = append(found, lease)
		}
	}
	return found, nil
}

func (m *leaseManager) AddResource(_ context.Context, lease leases.Lease, resource leases.Resource) error {
	m.resources[lease.ID] = append(m.resources[lease.ID], resource)
	return nil
}

func (m *leaseManager) DeleteResource(context.Context, leases.Lease, leases.Resource) error {
	return errdefs.ErrNotImplemented
}

func (m *leaseManager) ListResources(_ context.Context, lease leases.Lease) ([]leases.Resource, error) {
	return m.resources[lease.ID], nil
}

func newLeaseRuntime(t *testing.T) (*Runtime, *leaseManager) {
	t.Helper()
	m := &leaseManager{leases: map[string]leases.Lease{}, resources: map[string][]leases.Resource{}}
	c, err := client.New("", client.WithServices(client.WithLeasesService(m)))
	if err != nil {
		t.Fatal(err)
	}
	return &Runtime{client: c}, m
}

func parse(t *testing.T, name string) imageref.Reference {
	t.Helper()
	ref, err := imageref.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestLeaseOfAnImageThatIsTriedAgainNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newLeaseRuntime(t)
		app, web := parse(t, "ghcr.io/org/app:v1"), parse(t, "ghcr.io/org/web:v1")
		lease := func(ref imageref.Reference) string {
			ctx, err := r.ensureLease(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			id, _ := leases.FromContext(ctx)
			return id
		}
		first, other := lease(app), lease(web)
		m.resources[first] = []leases.Resource{{ID: "sha256:a", Type: "content"}, {ID: "layer-b", Type: "ingests"}}
		advance(leaseLifetime / 2)
		if again := lease(app); again != first {
			t.Errorf("the lease was renewed early: %q, then %q", first, again)
		}
		advance(time.Hour)
		renewed := lease(app)
		if renewed == first || len(m.resources[renewed]) != 2 {
			t.Errorf("lease %q has %v", renewed, m.resources[renewed])
		}
		end, err := time.Parse(time.RFC3339, m.leases[renewed].Labels["containerd.io/gc.expire"])
		if err != nil || time.Until(end) < leaseLifetime-time.Minute {
			t.Errorf("it ends at %v: %v", end, err)
		}
		if _, ok := m.leases[first]; ok {
			t.Error("the old lease was left behind")
		}
		if err := r.deleteLeases(t.Context(), app); err != nil {
			t.Error(err)
		}
		if left := slices.Collect(maps.Keys(m.leases)); !slices.Equal(left, []string{other}) {
			t.Errorf("%v are left, want %q", left, other)
		}
	})
}

func TestUnfinishedContentStaysForASeedThatTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newLeaseRuntime(t)
		app := parse(t, "ghcr.io/org/app:v1")
		if _, err := r.ensureLease(t.Context(), app); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			reason string
			after  time.Duration
			wanted bool
			leases int
		}{
			{"its image is wanted", time.Hour, true, 1},
			{"it is unwanted from now on", 0, false, 1},
			{"it was unwanted for less than the grace", unwantedGrace - 1, false, 1},
			{"it is wanted again, so the grace begins again", 0, true, 1},
			{"it is unwanted again", time.Hour, false, 1},
			{"it was unwanted for less than the grace", unwantedGrace - 1, false, 1},
			{"the grace is over", 1, false, 0},
		} {
			advance(step.after)
			if err := r.deleteUnwantedLeases(t.Context(), map[string]bool{app.String(): step.wanted}); err != nil {
				t.Fatal(err)
			}
			if len(m.leases) != step.leases {
				t.Fatalf("%s: %d leases, want %d", step.reason, len(m.leases), step.leases)
			}
		}
	})
}

// advance lets time pass in the synctest bubble.
func advance(by time.Duration) { <-time.After(by) }
