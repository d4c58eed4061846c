// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/util/workqueue"
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
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

const (
	// concurrentReleases bounds the releases under way: a Ready ImagePrefetch may be
	// what many wait for.
	concurrentReleases = 8
	// firstRetry and lastRetry are the shortest and the longest time after which a release
	// that was rejected is tried again. It doubles each time.
	firstRetry = 5 * time.Millisecond
	lastRetry  = time.Minute
)

// AddToCache has a manager's cache keep held Deployments only, and of DaemonSets that of the
// agents, if one is named.
func AddToCache(options *cache.Options, agents client.ObjectKey) error {
	held, err := labels.NewRequirement(v1alpha1.HoldLabel, selection.Exists, nil)
	if err != nil {
		return fmt.Errorf("select by label %s: %w", v1alpha1.HoldLabel, err)
	}
	if options.ByObject == nil {
		options.ByObject = map[client.Object]cache.ByObject{}
	}
	options.ByObject[&appsv1.Deployment{}] = cache.ByObject{Label: labels.NewSelector().Add(*held)}
	if agents.Name != "" {
		options.ByObject[&appsv1.DaemonSet{}] = cache.ByObject{Namespaces: map[string]cache.Config{
			agents.Namespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", agents.Name)},
		}}
	}
	return nil
}

// SetupWithManager registers the reconciler and what it watches. The manager's cache
// must be made with AddToCache.
func (r *Reconciler) SetupWithManager(mgr manager.Manager) error {
	if err := mgr.Add(manager.RunnableFunc(r.findOrphans)); err != nil {
		return fmt.Errorf("add the look for orphans: %w", err)
	}
	return builder.ControllerManagedBy(mgr).
		Named("gate").
		For(&appsv1.Deployment{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: holdChanged})).
		Watches(&v1alpha1.ImagePrefetch{}, handler.EnqueueRequestsFromMapFunc(r.heldFor)).
		WatchesRawSource(source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			r.Cluster.Nodes.OnChange(func(changed map[string]*hold.Node) {
				for _, key := range r.holds.concernedBy(changed) {
					queue.Add(reconcile.Request{NamespacedName: key})
				}
			})
			return nil
		})).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: concurrentReleases,
			// After the cause of a rejected release is fixed, the release follows soon.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
			// A standby follows the watches, so that it can take over at once.
			EnableWarmup: ptr.To(true),
		}).
		Complete(r)
}

// heldFor are the held Deployments in the namespace of an ImagePrefetch that name it, or have an image
// of a tag that it lists: those that name another one may wait for what this one has resolved.
func (r *Reconciler) heldFor(ctx context.Context, prefetch client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, what := range append(hold.TagsListedBy(prefetch.(*v1alpha1.ImagePrefetch)), prefetch.GetName()) {
		var held appsv1.DeploymentList
		err := r.Client.List(ctx, &held, client.InNamespace(prefetch.GetNamespace()), client.MatchingFields{waitsForIndex: what}, client.UnsafeDisableDeepCopy)
		if err != nil {
			return nil // the cache is stopped, and so are we
		}
		for i := range held.Items {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&held.Items[i])})
		}
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
