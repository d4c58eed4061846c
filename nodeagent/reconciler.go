// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// CacheOptions restrict a manager's cache to this node's object. For a watch on metadata.name, the
// API server looks at no events of other nodes.
func CacheOptions(nodeName string) cache.Options {
	return cache.Options{ByObject: map[client.Object]cache.ByObject{
		&v1alpha1.NodeImageSet{}: {Field: fields.OneTermEqualSelector("metadata.name", nodeName)},
	}}
}

// Reconciler gives the node's NodeImageSet to the Agent.
type Reconciler struct {
	Client   client.Reader
	Agent    *Agent
	NodeName string
}

// Reconcile only reads the object. All work is the Agent's.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	set := &v1alpha1.NodeImageSet{}
	switch err := r.Client.Get(ctx, req.NamespacedName, set); {
	case apierrors.IsNotFound(err):
		r.Agent.Apply(nil)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get NodeImageSet %q: %w", req.Name, err)
	default:
		r.Agent.Apply(set)
	}
	return reconcile.Result{}, nil
}

// SetupWithManager watches the node's object.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	// If there is no object, no event comes, but the pins of an earlier spec are still to be
	// removed.
	initial := source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		queue.Add(reconcile.Request{NamespacedName: types.NamespacedName{Name: r.NodeName}})
		return nil
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("nodeimageset").
		For(&v1alpha1.NodeImageSet{}).
		WithEventFilter(specChanged).
		WatchesRawSource(initial).
		Complete(r)
}

// specChanged leaves out the agent's own status writes. An object that was deleted and made again
// between two lists comes as an update, perhaps with the same generation.
var specChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() || e.ObjectOld.GetUID() != e.ObjectNew.GetUID()
}}
