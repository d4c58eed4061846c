// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package distribution moves images through the cluster.
//
// One reconciler, [Reconciler], plans every image over all nodes of all
// ImagePrefetches in one pass, because "each image comes from upstream once" is a
// property of the whole cluster. Its work queue has a single key, so events that
// arrive during a pass fall together into the next one:
//
//	ImagePrefetch, Node, NodeImageSet events
//	                 │
//	                 ▼
//	observe ──▶ plan.Next ──▶ start ──▶ report
//	(cache)      (pure)     (specs of   (statuses of ImagePrefetches,
//	                      NodeImageSets)  then events on transitions)
//
// A pass keeps nothing that the next one could not do without: what it wrote last,
// until the cache shows it; when it last saw an agent move; and when it last wrote a
// status. After a restart or a change of leader the first is read back from the API
// server, and the other two begin anew.
package distribution
