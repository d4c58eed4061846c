// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"fmt"
	"maps"
	"time"
	"unique"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// clusterKey is the only key of the work queue: whatever happens, the whole
// distribution is planned anew.
type clusterKey struct{}

type queue = workqueue.TypedRateLimitingInterface[clusterKey]

// SetupWithManager registers the reconciler and what it watches.
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
			// A pass that failed is due again soon: it stands for the whole cluster.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[clusterKey](passInterval, 10*time.Second),
			// A standby follows the watches, so that it can take over at once.
			EnableWarmup: ptr.To(true),
		}).
		Complete(r)
}

// onUpdate lets an update through when moved says so, and every creation and deletion.
func onUpdate[T client.Object](moved func(before, after T) bool) predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, wasT := e.ObjectOld.(T)
		after, isT := e.ObjectNew.(T)
		return wasT && isT && moved(before, after)
	}}
}

// specChanged ignores the status.
func specChanged(before, after *appsv1.DaemonSet) bool { return before.Generation != after.Generation }

// prefetchChanged ignores what this controller itself writes.
func prefetchChanged(before, after *v1alpha1.ImagePrefetch) bool {
	return before.Generation != after.Generation ||
		before.Annotations[v1alpha1.RefreshAnnotation] != after.Annotations[v1alpha1.RefreshAnnotation] ||
		!before.DeletionTimestamp.Equal(after.DeletionTimestamp)
}

func setChanged(before, after *v1alpha1.NodeImageSet) bool {
	return before.Generation != after.Generation || !equality.Semantic.DeepEqual(&before.Status, &after.Status)
}

// nodeChanged ignores heartbeats. It ignores the list of images as well: it is a hint
// for the next pass, and no reason for one.
func nodeChanged(before, after *corev1.Node) bool {
	return before.Spec.Unschedulable != after.Spec.Unschedulable ||
		hasCondition(before, corev1.NodeReady) != hasCondition(after, corev1.NodeReady) ||
		hasCondition(before, corev1.NodeDiskPressure) != hasCondition(after, corev1.NodeDiskPressure) ||
		before.UID != after.UID ||
		!maps.Equal(before.Labels, after.Labels) ||
		!equality.Semantic.DeepEqual(before.Spec.Taints, after.Spec.Taints) ||
		before.Status.NodeInfo != after.Status.NodeInfo
}

// namespaceChanged looks at what policies select by.
func namespaceChanged(before, after *corev1.Namespace) bool {
	return before.UID != after.UID || !maps.Equal(before.Labels, after.Labels)
}

// CacheOptions keep the cache small on a large cluster.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject:         map[client.Object]cache.ByObject{&corev1.Node{}: {Transform: trimNode}},
	}
}

// trimNode keeps of a Node what the plan looks at: a few hundred bytes instead of
// tens of thousands.
func trimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("trim a Node: got %T", object)
	}
	trimmed := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, Labels: node.Labels,
			CreationTimestamp: node.CreationTimestamp,
		},
		Spec: corev1.NodeSpec{Unschedulable: node.Spec.Unschedulable, Taints: node.Spec.Taints},
		Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{
			OperatingSystem: node.Status.NodeInfo.OperatingSystem, Architecture: node.Status.NodeInfo.Architecture,
		}},
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady || condition.Type == corev1.NodeDiskPressure {
			trimmed.Status.Conditions = append(trimmed.Status.Conditions,
				corev1.NodeCondition{Type: condition.Type, Status: condition.Status})
		}
	}
	for _, image := range node.Status.Images {
		names := make([]string, len(image.Names))
		for i, name := range image.Names {
			names[i] = unique.Make(name).Value() // most nodes hold the same images
		}
		trimmed.Status.Images = append(trimmed.Status.Images, corev1.ContainerImage{Names: names})
	}
	return trimmed, nil
}
