// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
	"github.com/sluice-dev/sluice/internal/requeue"
)

// staleRetry is the time until the next try after a patch whose tests failed. By then the cache
// usually shows the change that made them fail.
const staleRetry = 100 * time.Millisecond

// Reconciler ends the holds of Deployments.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// APIReader reads from the API server what the cache lacks or shows late.
	APIReader client.Reader
	// Recorder records events on Deployments.
	Recorder events.EventRecorder
	// Cluster is what evidence is read from.
	Cluster *ClusterReader
	// Clock is compared with the times that the webhook wrote.
	Clock clock.PassiveClock
	// Metrics counts holds.
	Metrics *Metrics

	holds holdTracker
}

// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=sluice.dev,resources=imageprefetches,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile moves the hold of one Deployment a step further.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	deployment, prefetch, err := r.observe(ctx, req.NamespacedName)
	if err != nil {
		return reconcile.Result{}, err
	}
	if deployment == nil {
		return reconcile.Result{}, r.loseHold(ctx, req.NamespacedName)
	}
	if r.holds.hasEnded(req.NamespacedName, deployment.ResourceVersion) {
		return reconcile.Result{}, nil // the cache shows the end later, and its event runs this again
	}
	now := r.Clock.Now()
	r.holds.waitFor(req.NamespacedName, "", nil) // whatever changes from now on, look again
	cluster, until, err := r.Cluster.Read(ctx, deployment, prefetch)
	if err != nil {
		return reconcile.Result{}, err
	}
	step := hold.Next(deployment, prefetch, cluster, now) // pure
	r.trackHold(req.NamespacedName, step)
	patched := deployment.DeepCopy()
	if len(step.Patch) > 0 {
		switch stale, err := r.patch(ctx, patched, step); {
		case err != nil:
			r.recordRejection(deployment, prefetch, err, now)
			return reconcile.Result{}, err
		case stale:
			return reconcile.Result{RequeueAfter: staleRetry}, nil
		}
	}
	if step.End != "" {
		remaining := r.holds.end(req.NamespacedName, patched.ResourceVersion)
		r.Metrics.holdsActive.Set(float64(remaining))
		r.recordEnd(ctx, deployment, prefetch, step, now)
		return reconcile.Result{}, nil
	}
	retryAt := r.recordWait(deployment, prefetch, step, now)
	return reconcile.Result{RequeueAfter: requeue.After(now, step.WakeAt, retryAt, until)}, nil
}

// observe reads the Deployment, nil if it is not held, and the ImagePrefetch that it waits for, nil
// if there is none.
func (r *Reconciler) observe(ctx context.Context, key types.NamespacedName) (*appsv1.Deployment, *v1alpha1.ImagePrefetch, error) {
	deployment, err := getHeld(ctx, r.Client, key)
	if err == nil && deployment != nil && hold.NeedsManagedFields(deployment) {
		deployment, err = getHeld(ctx, r.APIReader, key) // the cache has no managed fields
	}
	if err != nil || deployment == nil {
		return nil, nil, err
	}
	settings, _ := hold.SettingsOf(deployment)
	var prefetch v1alpha1.ImagePrefetch
	switch err := r.Client.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: settings.Prefetch}, &prefetch); {
	case apierrors.IsNotFound(err):
		return deployment, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("get ImagePrefetch %q: %w", settings.Prefetch, err)
	}
	return deployment, &prefetch, nil
}

// getHeld reads a Deployment; nil if it is not held.
func getHeld(ctx context.Context, from client.Reader, key types.NamespacedName) (*appsv1.Deployment, error) {
	var deployment appsv1.Deployment
	if err := from.Get(ctx, key, &deployment); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if _, labelled := deployment.Labels[v1alpha1.HoldLabel]; !labelled || !deployment.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	return &deployment, nil
}

// patch applies all operations of a step or none, and leaves the stored object in deployment. It is
// stale if the stored object is no longer the one that the step was decided on.
func (r *Reconciler) patch(ctx context.Context, deployment *appsv1.Deployment, step hold.Step) (stale bool, err error) {
	document, err := json.Marshal(step.Patch)
	if err != nil {
		return false, fmt.Errorf("encode patch: %w", err)
	}
	err = r.Client.Patch(ctx, deployment, client.RawPatch(types.JSONPatchType, document))
	if err == nil {
		return false, nil
	}
	if stale, readErr := r.isStale(ctx, deployment, step); !stale {
		return false, errors.Join(fmt.Errorf("patch Deployment: %w", err), readErr)
	}
	log.FromContext(ctx).V(1).Info("Found Deployment changed before it was patched", "reason", err.Error())
	return true, nil
}

// isStale reports whether the stored Deployment is no longer the one that a step was decided on. The
// API server answers Invalid to a failed test, and also to what validation rejects; a webhook that
// denies may answer with any code. Only the stored object tells the two apart.
func (r *Reconciler) isStale(ctx context.Context, deployment *appsv1.Deployment, step hold.Step) (bool, error) {
	var live appsv1.Deployment
	switch err := r.APIReader.Get(ctx, client.ObjectKeyFromObject(deployment), &live); {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("get Deployment: %w", err)
	}
	return live.UID != deployment.UID || !step.Fits(&live), nil
}
