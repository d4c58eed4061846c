// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

// tagIndex is the name of the index of ImagePrefetches by the tags that they list.
const tagIndex = "tags"

// ClusterReader reads from caches what the gate goes by. The webhooks and the gate controller share
// one.
type ClusterReader struct {
	// Nodes are the nodes of the cluster.
	Nodes *Nodes
	// Prefetches is a cache of ImagePrefetches that [IndexPrefetches] was called for.
	Prefetches client.Reader
}

// IndexPrefetches has a cache find ImagePrefetches by the tags that they list, since a namespace may
// have thousands of them. It is called once, before the cache is started.
func IndexPrefetches(ctx context.Context, indexer client.FieldIndexer) error {
	err := indexer.IndexField(ctx, &v1alpha1.ImagePrefetch{}, tagIndex, func(object client.Object) []string {
		return hold.TagsListedBy(object.(*v1alpha1.ImagePrefetch))
	})
	if err != nil {
		return fmt.Errorf("index ImagePrefetches by tag: %w", err)
	}
	return nil
}

// Read returns what evidence for a Deployment is read from, and when time alone will change it
// (Nodes.Snapshot). The prefetch is the one that it names, or nil.
func (r *ClusterReader) Read(ctx context.Context, deployment *appsv1.Deployment, named *v1alpha1.ImagePrefetch) (cluster hold.Cluster, until time.Time, err error) {
	if cluster.Nodes, until, err = r.Nodes.Snapshot(ctx); err != nil { // waits until the cache is filled
		return hold.Cluster{}, time.Time{}, err
	}
	if named != nil {
		cluster.Prefetches = append(cluster.Prefetches, named)
	}
	for _, tag := range hold.TagsOfOthers(&deployment.Spec.Template.Spec, named) {
		var others v1alpha1.ImagePrefetchList
		err := r.Prefetches.List(ctx, &others, client.InNamespace(deployment.Namespace), client.MatchingFields{tagIndex: tag}, client.UnsafeDisableDeepCopy)
		if err != nil {
			return hold.Cluster{}, time.Time{}, fmt.Errorf("list the ImagePrefetches of %s from the cache: %w", tag, err)
		}
		for i := range others.Items {
			cluster.Prefetches = append(cluster.Prefetches, &others.Items[i])
		}
	}
	return cluster, until, nil
}
