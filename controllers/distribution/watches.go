// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"maps"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// clusterKey is the only key of the work queue: each pass plans for the whole cluster.
type clusterKey struct{}

type queue = workqueue.TypedRateLimitingInterface[clusterKey]

// SetupWithManager registers the reconciler and its watches.
func (r *Reconciler) SetupWithManager(mgr manager.Manager) error {
	enqueue := handler.TypedFuncs[client.Object, clusterKey]{
		CreateFunc: func(_ context.Context, _ event.CreateEvent, q queue) { q.Add(clusterKey{}) },
		UpdateFunc: func(_ context.Context, _ event.UpdateEvent, q queue) { q.Add(clusterKey{}) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
			r.deletions.add(e.Object.GetUID())
			q.Add(clusterKey{})
		},
	}
	b := builder.TypedControllerManagedBy[clusterKey](mgr).
		Named("distribution").
		Watches(&v1alpha1.ImagePrefetch{}, enqueue, builder.WithPredicates(onUpdate(prefetchChanged))).
		Watches(&v1alpha1.NodeImageSet{}, enqueue, builder.WithPredicates(onUpdate(setChanged))).
		Watches(&corev1.Node{}, enqueue, builder.WithPredicates(onUpdate(nodeChanged))).
		Watches(&v1alpha1.PrefetchPolicy{}, enqueue).
		Watches(&corev1.Namespace{}, enqueue, builder.WithPredicates(onUpdate(namespaceChanged)))
	if r.Agents.Name != "" {
		b = b.Watches(&appsv1.DaemonSet{}, enqueue, builder.WithPredicates(onUpdate(specChanged)))
	}
	return b.
		WithOptions(controller.TypedOptions[clusterKey]{
			// A failed pass is retried soon, because the whole cluster waits for it.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[clusterKey](passInterval, 10*time.Second),
			// A standby follows the watches, so that it can take over at once.
			EnableWarmup: ptr.To(true),
		}).
		Complete(r)
}

// onUpdate selects the updates for which changed is true, and all creations and deletions.
func onUpdate[T client.Object](changed func(before, after T) bool) predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, wasT := e.ObjectOld.(T)
		after, isT := e.ObjectNew.(T)
		return wasT && isT && changed(before, after)
	}}
}

// specChanged ignores the status.
func specChanged(before, after *appsv1.DaemonSet) bool { return before.Generation != after.Generation }

// prefetchChanged ignores what this controller writes.
func prefetchChanged(before, after *v1alpha1.ImagePrefetch) bool {
	return before.Generation != after.Generation ||
		before.Annotations[v1alpha1.RefreshAnnotation] != after.Annotations[v1alpha1.RefreshAnnotation] ||
		!before.DeletionTimestamp.Equal(after.DeletionTimestamp)
}

func setChanged(before, after *v1alpha1.NodeImageSet) bool {
	return before.Generation != after.Generation || !equality.Semantic.DeepEqual(&before.Status, &after.Status)
}

// nodeChanged ignores heartbeats. It also ignores the list of images, which helps the plan to choose
// seeds, but does not call for a pass.
func nodeChanged(before, after *corev1.Node) bool {
	return before.Spec.Unschedulable != after.Spec.Unschedulable ||
		hasCondition(before, corev1.NodeReady) != hasCondition(after, corev1.NodeReady) ||
		hasCondition(before, corev1.NodeDiskPressure) != hasCondition(after, corev1.NodeDiskPressure) ||
		before.UID != after.UID ||
		!maps.Equal(before.Labels, after.Labels) ||
		!equality.Semantic.DeepEqual(before.Spec.Taints, after.Spec.Taints) ||
		before.Status.NodeInfo != after.Status.NodeInfo
}

// namespaceChanged ignores all fields but those that policies select by.
func namespaceChanged(before, after *corev1.Namespace) bool {
	return before.UID != after.UID || !maps.Equal(before.Labels, after.Labels)
}
