// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/policy"
	"github.com/sluice-dev/sluice/internal/requeue"
)

const (
	// passInterval is the least time between two passes. An event that comes later than that is
	// served at once; events that come sooner share the next pass.
	passInterval = 50 * time.Millisecond
	// statusInterval is the least time between two writes of a status in which only counts differ.
	statusInterval = 2 * time.Second
	// concurrentWrites bounds the writes that are under way at a time.
	concurrentWrites = 16
)

// Reconciler brings the images of all ImagePrefetches to their nodes. It is not safe for concurrent
// use, and need not be, because its work queue has one key.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// APIReader reads from the API server what the cache may not show yet.
	APIReader client.Reader
	// Recorder records events on ImagePrefetches.
	Recorder events.EventRecorder
	// Clock is for timeouts alone. It need not agree with the clocks of other machines.
	Clock clock.PassiveClock
	// Limits are the limits of the plan.
	Limits plan.Limits
	// PullSecrets says that there is an endpoint where agents get credentials. Without it nothing
	// is pulled for an ImagePrefetch that names pull secrets.
	PullSecrets bool
	// NodeLocal are the repositories whose tags mean what the nodes have under that name.
	NodeLocal policy.Repositories
	// DefaultPolicy applies to a namespace that no PrefetchPolicy selects.
	DefaultPolicy policy.Default
	// Agents is the DaemonSet whose placement says on which nodes agents are meant to run;
	// empty for every node.
	Agents client.ObjectKey
	// Metrics counts the results of passes.
	Metrics *Metrics

	// synced says that this controller knows the newest versions of its objects, because it has
	// read them from the API server and has had a clear answer to each write since.
	synced            bool
	lastPass          time.Time
	memory            plan.Memory
	writtenSets       writeOverlay[*v1alpha1.NodeImageSet]
	writtenPrefetches writeOverlay[*v1alpha1.ImagePrefetch]
	deletions         deletionLog
	nodeViews         map[string]*observedNode
	references        referenceMemo
	verdicts          policyMemo
	statusTimes       statusTimes
}

// +kubebuilder:rbac:groups=sluice.dev,resources=imageprefetches,verbs=list;watch
// +kubebuilder:rbac:groups=sluice.dev,resources=imageprefetches/status,verbs=update
// +kubebuilder:rbac:groups=sluice.dev,resources=nodeimagesets,verbs=list;watch;create;update
// +kubebuilder:rbac:groups=sluice.dev,resources=prefetchpolicies,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// Leader election:
// +kubebuilder:rbac:groups="",resources=events,namespace=sluice-system,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,namespace=sluice-system,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,resourceNames=sluice-controller,namespace=sluice-system,verbs=get;update

// Reconcile makes one pass over the whole distribution. Each pass starts from the whole state, so any
// of them may be repeated.
func (r *Reconciler) Reconcile(ctx context.Context, _ clusterKey) (reconcile.Result, error) {
	if wait := r.lastPass.Add(passInterval).Sub(r.Clock.Now()); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	defer func() { r.lastPass = r.Clock.Now() }()

	seen, err := r.observe(ctx) // reads only
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("observe the cluster: %w", err)
	}
	step := plan.Next(seen.state, r.Limits) // pure
	r.memory = step.Memory
	sets := r.writeSets(ctx, seen, step)
	// Statuses are written even if that failed, because users must see why nothing moves.
	statuses := r.writeStatuses(ctx, seen, step, sets)

	delay := requeue.After(r.Clock.Now(), step.WakeAt, sets.retryAt, statuses.retryAt, seen.cacheDueAt)
	return reconcile.Result{RequeueAfter: delay}, errors.Join(sets.err(), statuses.err)
}
