// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/requeue"
	"github.com/sluice-dev/sluice/internal/scheduling"
)

// observation is the cluster as one pass sees it. The objects that it points to belong to the cache,
// and must not be changed.
type observation struct {
	state plan.State
	// prefetches are sorted by key; those that are being deleted are left out.
	prefetches []observedPrefetch
	nodes      map[string]*observedNode
	// cacheDueAt is when the cache should show the writes that it does not show yet; zero if it
	// shows all.
	cacheDueAt time.Time
}

// observe reads the cache, applies the last writes to it, and makes the state for the plan.
func (r *Reconciler) observe(ctx context.Context) (*observation, error) {
	now := r.Clock.Now()
	for _, uid := range r.deletions.drain() {
		r.writtenSets.forget(uid)
		r.writtenPrefetches.forget(uid)
	}
	var (
		nodes      corev1.NodeList
		sets       v1alpha1.NodeImageSetList
		prefetches v1alpha1.ImagePrefetchList
	)
	for _, list := range []client.ObjectList{&nodes, &sets, &prefetches} {
		// Copies of thousands of objects would make up most of the cost of a pass.
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list %T from the cache: %w", list, err)
		}
	}
	setsNow, prefetchesNow := r.writtenSets.applyTo(byKey(sets.Items)), r.writtenPrefetches.applyTo(byKey(prefetches.Items))
	if !r.synced || r.writtenSets.overdue(now) || r.writtenPrefetches.overdue(now) {
		if err := r.readBack(ctx, now); err != nil {
			return nil, err
		}
		r.synced = true
		setsNow, prefetchesNow = r.writtenSets.applyTo(byKey(sets.Items)), r.writtenPrefetches.applyTo(byKey(prefetches.Items))
	}
	check, err := r.readPolicies(ctx)
	if err != nil {
		return nil, err
	}
	agents, err := r.agentConstraints(ctx)
	if err != nil {
		return nil, err
	}
	seen := &observation{
		state:      plan.State{Now: now, Memory: r.memory},
		nodes:      r.observeNodes(nodes.Items, setsNow, now),
		prefetches: r.observePrefetches(prefetchesNow, check),
		cacheDueAt: requeue.Earliest(r.writtenSets.overdueAt(), r.writtenPrefetches.overdueAt()),
	}
	for _, node := range seen.nodes {
		view := node.planNode
		view.Uncovered = agents != nil && agents.Fit(view.SchedulingNode()) == scheduling.FitNever
		seen.state.Nodes = append(seen.state.Nodes, view)
	}
	for _, prefetch := range seen.prefetches {
		if prefetch.blocker == nil {
			seen.state.Prefetches = append(seen.state.Prefetches, prefetch.planPrefetch())
		}
	}
	return seen, nil
}

// agentConstraints says on which nodes agents are meant to run; nil for every node.
func (r *Reconciler) agentConstraints(ctx context.Context) (*scheduling.Constraints, error) {
	if r.Agents.Name == "" {
		return nil, nil
	}
	var daemon appsv1.DaemonSet
	switch err := r.Client.Get(ctx, r.Agents, &daemon); {
	case apierrors.IsNotFound(err):
		return nil, nil // agents that do not run have a failure of their own
	case err != nil:
		return nil, fmt.Errorf("get DaemonSet %q from the cache: %w", r.Agents, err)
	}
	constraints := scheduling.OfDaemon(&daemon.Spec.Template.Spec)
	return &constraints, nil
}

// readBack reads all objects that this controller writes from the API server. Without it a new
// leader, whose cache may not show the writes of the last one, could choose a second seed.
func (r *Reconciler) readBack(ctx context.Context, now time.Time) error {
	var sets v1alpha1.NodeImageSetList
	if err := r.APIReader.List(ctx, &sets); err != nil {
		return fmt.Errorf("list NodeImageSets from the API server: %w", err)
	}
	var prefetches v1alpha1.ImagePrefetchList
	if err := r.APIReader.List(ctx, &prefetches); err != nil {
		return fmt.Errorf("list ImagePrefetches from the API server: %w", err)
	}
	r.writtenSets.reset(pointers(sets.Items), now)
	r.writtenPrefetches.reset(pointers(prefetches.Items), now)
	return nil
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}

// object is a *T that is an API object.
type object[T any] interface {
	*T
	client.Object
}

func byKey[T any, O object[T]](items []T) map[client.ObjectKey]O {
	all := make(map[client.ObjectKey]O, len(items))
	for i := range items {
		item := O(&items[i])
		all[client.ObjectKeyFromObject(item)] = item
	}
	return all
}

// observePrefetches makes the views of the ImagePrefetches, sorted by key.
func (r *Reconciler) observePrefetches(objects map[client.ObjectKey]*v1alpha1.ImagePrefetch, check policyCheck) []observedPrefetch {
	var all []observedPrefetch
	alive := make(map[types.UID]bool, len(objects))
	for _, object := range objects {
		if !object.DeletionTimestamp.IsZero() || !check.canJudge(object) {
			continue
		}
		alive[object.UID] = true
		prefetch := observePrefetch(object, &r.references, r.PullSecrets, r.NodeLocal)
		if prefetch.blocker == nil {
			prefetch.blocker = check.denial(object)
		}
		all = append(all, prefetch)
	}
	r.references.keep(alive)
	r.verdicts.keep(alive)
	r.statusTimes.keep(alive)
	slices.SortFunc(all, func(a, b observedPrefetch) int { return strings.Compare(a.key(), b.key()) })
	return all
}

// isWanted reports whether any prefetch that is not blocked wants an image.
func (o *observation) isWanted(image string) bool {
	return slices.ContainsFunc(o.state.Prefetches, func(p plan.Prefetch) bool { return slices.Contains(p.Images, image) })
}
