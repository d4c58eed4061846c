// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// byPrefetch indexes held Deployments by the ImagePrefetch that they name.
	byPrefetch = "sluice.dev/prefetch"
	// concurrentReleases bounds the releases under way. Many Deployments may wait for one
	// ImagePrefetch.
	concurrentReleases = 8
)

// AddToCache makes a manager's cache keep no Deployments but held ones.
func AddToCache(options *cache.Options) error {
	held, err := labels.NewRequirement(v1alpha1.HoldLabel, selection.Exists, nil)
	if err != nil {
		return fmt.Errorf("select by label %s: %w", v1alpha1.HoldLabel, err)
	}
	if options.ByObject == nil {
		options.ByObject = map[client.Object]cache.ByObject{}
	}
	options.ByObject[&appsv1.Deployment{}] = cache.ByObject{Label: labels.NewSelector().Add(*held)}
	return nil
}

// SetupWithManager registers the reconciler and its watches. The options of the manager's cache must
// have passed through AddToCache.
func (r *Reconciler) SetupWithManager(ctx context.Context, mgr manager.Manager) error {
	index := func(object client.Object) []string {
		return []string{object.GetAnnotations()[v1alpha1.PrefetchAnnotation]}
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &appsv1.Deployment{}, byPrefetch, index); err != nil {
		return fmt.Errorf("index Deployments by %s: %w", v1alpha1.PrefetchAnnotation, err)
	}
	return builder.ControllerManagedBy(mgr).
		Named("gate").
		For(&appsv1.Deployment{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: holdChanged})).
		Watches(&v1alpha1.ImagePrefetch{}, handler.EnqueueRequestsFromMapFunc(r.heldFor)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: concurrentReleases,
			// A standby follows the watches, so that it can take over at once.
			EnableWarmup: ptr.To(true),
		}).
		Complete(r)
}

// heldFor returns the held Deployments that name an ImagePrefetch.
func (r *Reconciler) heldFor(ctx context.Context, prefetch client.Object) []reconcile.Request {
	var held appsv1.DeploymentList
	if err := r.Client.List(ctx, &held, client.InNamespace(prefetch.GetNamespace()),
		client.MatchingFields{byPrefetch: prefetch.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
		return nil // the cache has stopped, as this controller is about to
	}
	requests := make([]reconcile.Request, len(held.Items))
	for i := range held.Items {
		requests[i].NamespacedName = client.ObjectKeyFromObject(&held.Items[i])
	}
	return requests
}

// holdChanged ignores changes of the status and of the number of replicas.
func holdChanged(e event.UpdateEvent) bool {
	before, wasDeployment := e.ObjectOld.(*appsv1.Deployment)
	after, isDeployment := e.ObjectNew.(*appsv1.Deployment)
	return wasDeployment && isDeployment &&
		(before.UID != after.UID ||
			before.Spec.Paused != after.Spec.Paused ||
			!equality.Semantic.DeepEqual(before.Labels, after.Labels) ||
			!equality.Semantic.DeepEqual(before.Annotations, after.Annotations) ||
			!equality.Semantic.DeepEqual(before.Spec.Template, after.Spec.Template) ||
			!before.DeletionTimestamp.Equal(after.DeletionTimestamp))
}
