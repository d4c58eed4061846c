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

const (
	// tagIndex is the index of ImagePrefetches by the tags that they list.
	tagIndex = "tags"
	// waitsForIndex is the index of Deployments by the name of the ImagePrefetch that they name, and by
	// the tags of their images: what a change of an ImagePrefetch may concern.
	waitsForIndex = "waitsFor"
)

// ClusterReader reads from caches what the gate goes by. The webhooks and the gate controller share
// one.
type ClusterReader struct {
	// Nodes are the nodes of the cluster.
	Nodes *Nodes
	// Prefetches is a cache of ImagePrefetches that [AddIndexes] was called for.
	Prefetches client.Reader
}

// AddIndexes has a cache find ImagePrefetches and held Deployments by what relates them, since a
// namespace may have thousands of each. It is called once, before the cache is started.
func AddIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	tags := func(object client.Object) []string { return hold.TagsListedBy(object.(*v1alpha1.ImagePrefetch)) }
	if err := indexer.IndexField(ctx, &v1alpha1.ImagePrefetch{}, tagIndex, tags); err != nil {
		return fmt.Errorf("index ImagePrefetches: %w", err)
	}
	waitsFor := func(object client.Object) []string {
		deployment := object.(*appsv1.Deployment)
		settings, _ := hold.SettingsOf(deployment)
		return append(hold.TagsOfOthers(&deployment.Spec.Template.Spec, nil), settings.Prefetch)
	}
	if err := indexer.IndexField(ctx, &appsv1.Deployment{}, waitsForIndex, waitsFor); err != nil {
		return fmt.Errorf("index Deployments: %w", err)
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
