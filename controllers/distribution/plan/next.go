// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/internal/heartbeat"
)

// Next decides which nodes pull which images now, and from where. It may be repeated at any time:
// what is under way goes on, and a Step that was written in part is completed by the next.
func Next(state State, limits Limits) Step {
	// 1. Index nodes and prefetches, and find the silent agents.
	pl := newPlanner(state, limits.orDefault())
	// 2. Choose the nodes of each prefetch, and find those that are joining. Relies on the silent
	// agents (1): they are no replicas.
	pl.selectNodes()
	pl.findJoined(state.Memory)
	// 3. List the images that prefetches want or specs name, with their entries and history.
	pl.listImages(state.Memory)
	// 4. Find the digest of each image. Relies on the targets (2): a prefetch without nodes asks
	// nothing.
	pl.resolveDigests()
	// 5. List the placements of each image, with their pull states. Relies on targets (2), entries
	// and slot progress (3) and digests (4).
	pl.listPlacements()
	// 6. Note which placements the kubelets list. Relies on digests (4) and placements (5).
	pl.readKubeletImages()
	// 7. Keep the entries that are still right. Relies on the pull states (5).
	pl.keepEntries()
	// 8. Promote resolvers and seeds, of every image before any wave: a wave needs what a seed
	// brings. Relies on the kubelets' lists (6), and on 7, which says who stays a seed.
	pl.promoteResolversAndSeeds()
	// 9. Find the placements that the mirror serves nothing. Relies on holders (5).
	pl.findStarved()
	// 10. Admit waves. Relies on 8, which leaves the pulls that the limit of the cluster allows,
	// and on 9: starved placements take no opening.
	pl.admitWaves()
	// 11. Forget the joining nodes that have the images by now, and compare what was decided
	// (7, 8, 10) with the specs.
	pl.dropJoined()
	return pl.buildStep()
}

// newPlanner indexes nodes and prefetches.
func newPlanner(state State, limits Limits) *planner {
	pl := &planner{
		now:     state.Now,
		limits:  limits,
		demands: make([]nodeDemand, len(state.Nodes)),
	}
	all := make([]node, len(state.Nodes))
	pl.nodes = make([]*node, len(state.Nodes))
	for i := range state.Nodes {
		all[i].Node = &state.Nodes[i]
		pl.nodes[i] = &all[i]
	}
	slices.SortFunc(pl.nodes, func(a, b *node) int { return strings.Compare(a.Name, b.Name) })
	for i, n := range pl.nodes {
		n.index = i
		pl.detectSilentAgent(n)
	}
	for i := range state.Prefetches {
		pl.prefetches = append(pl.prefetches, &prefetch{Prefetch: &state.Prefetches[i], seedImages: make(map[int]int), pullingImages: make(map[int]int), arrivedAt: make(map[int]time.Time), leavingImages: make(map[int]int)})
	}
	slices.SortFunc(pl.prefetches, func(a, b *prefetch) int { return strings.Compare(a.Key, b.Key) })
	for i, pf := range pl.prefetches {
		pf.index = i
		pf.requestID = newRequestID(pf.UID, pf.Generation, pf.Refresh)
	}
	return pl
}

// detectSilentAgent notes whether the agent of a node owes an answer for too long.
func (pl *planner) detectSilentAgent(n *node) {
	silentAt := heartbeat.SilentAt(pl.orNow(n.HeardAt), n.Acknowledged, n.hasUnfinished(), pl.limits.AgentTimeout)
	if !silentAt.IsZero() {
		n.silent = !pl.now.Before(silentAt)
		pl.wakeAt(silentAt)
	}
}

// hasUnfinished reports whether the agent still works on some image of its spec.
func (n *node) hasUnfinished() bool {
	for _, entry := range n.Entries {
		if entry.Wanted != nil && entry.Status != nil && entry.Status.State.Unfinished() {
			return true
		}
	}
	return false
}
