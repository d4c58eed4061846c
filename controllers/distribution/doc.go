// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package distribution moves images through the cluster.
//
// One reconciler, [Reconciler], plans all images on all nodes for all ImagePrefetches in one pass,
// because "each image comes from upstream once" is a property of the whole cluster. Its work queue
// has a single key, so that all events that arrive during a pass are served by the next one:
//
//	ImagePrefetch, Node, NodeImageSet events
//	                 │
//	                 ▼
//	observe ──▶ plan.Next ──▶ writeSets ──▶ writeStatuses
//	(cache)      (pure)      (specs of      (statuses of ImagePrefetches,
//	                       NodeImageSets)    then events on transitions)
//
// Between passes the reconciler keeps what it wrote last, until the cache shows it; when each agent
// last reported progress; the memory of the plan; and when each status was last written. After a
// restart or a change of leader, the first is read from the API server, and the others start empty.
package distribution
