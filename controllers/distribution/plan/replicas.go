// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// chooseNodes narrows the nodes that match to those that the prefetch gets: its replicas, or all,
// as far as their sets have room.
func (pf *prefetch) chooseNodes(fits func(*node) bool) {
	matching := pf.targets
	chosen := &targetNodes{uncovered: matching.uncovered}
	for _, n := range matching.desired {
		if fits(n) {
			chosen.desired = append(chosen.desired, n)
		} else {
			chosen.full = append(chosen.full, n)
		}
	}
	for _, n := range matching.retained {
		if fits(n) {
			chosen.retained = append(chosen.retained, n)
		}
	}
	if pf.Replicas != nil {
		chosen.desired = chooseReplicas(pf.Prefetch, chosen.desired)
		count := int(*pf.Replicas)
		chosen.full = chosen.full[:min(len(chosen.full), count-len(chosen.desired))]
		pf.missingReplicas = count - len(chosen.desired) - len(chosen.full)
	} else if len(chosen.full) == 0 && len(chosen.retained) == len(matching.retained) {
		return // all of them: the shared list stays
	}
	chosen.setNames()
	pf.targets = chosen
}

// setNames sets the names of the desired nodes.
func (t *targetNodes) setNames() {
	t.names = make([]string, 0, len(t.desired)+len(t.full))
	for _, n := range slices.Concat(t.desired, t.full) {
		t.names = append(t.names, n.Name)
		if n.silent {
			t.silentNames = append(t.silentNames, n.Name)
		}
	}
	for _, n := range t.full {
		t.fullNames = append(t.fullNames, n.Name)
	}
	for _, n := range t.uncovered {
		t.uncoveredNames = append(t.uncoveredNames, n.Name)
	}
	slices.Sort(t.uncoveredNames)
	slices.Sort(t.names)
	slices.Sort(t.silentNames)
	slices.Sort(t.fullNames)
}

// chooseReplicas chooses the replicas of a prefetch among the nodes that match, or all of these if
// there are too few. Nodes that have its images come first, so that a choice once made stays; then
// the zones take turns; last decides a hash, which does not change when other nodes come and go.
func chooseReplicas(pf *Prefetch, from []*node) []*node {
	count := int(*pf.Replicas)
	if len(from) <= count {
		return from
	}
	candidates := make([]replicaCandidate, 0, len(from))
	for _, n := range from {
		candidates = append(candidates, replicaCandidate{node: n, missing: missingImages(pf, n)})
	}
	if complete := withMissing(candidates, 0); len(complete) >= count {
		candidates = complete // the usual case, and a short list
	}
	for i := range candidates {
		candidates[i].hash = stableHash(pf.UID, candidates[i].node.Name)
	}
	slices.SortFunc(candidates, func(a, b replicaCandidate) int {
		return cmp.Or(cmp.Compare(a.node.Zone, b.node.Zone), byPreference(a, b))
	})
	for i := 1; i < len(candidates); i++ {
		if candidates[i].node.Zone == candidates[i-1].node.Zone {
			candidates[i].zoneRank = candidates[i-1].zoneRank + 1
		}
	}
	slices.SortFunc(candidates, func(a, b replicaCandidate) int {
		return cmp.Or(cmp.Compare(a.missing, b.missing), cmp.Compare(a.zoneRank, b.zoneRank), byPreference(a, b))
	})
	chosen := make([]*node, 0, count)
	for _, c := range candidates[:count] {
		chosen = append(chosen, c.node)
	}
	slices.SortFunc(chosen, func(a, b *node) int { return cmp.Compare(a.index, b.index) })
	return chosen
}

func byPreference(a, b replicaCandidate) int {
	return cmp.Or(cmp.Compare(a.missing, b.missing), cmp.Compare(a.hash, b.hash), cmp.Compare(a.node.index, b.node.index))
}

// missingImages counts the images of a prefetch that a node's spec does not name.
func missingImages(pf *Prefetch, n *node) int {
	if !n.canPull() || n.DiskPressure {
		return len(pf.Images) + 1
	}
	missing := 0
	for _, image := range pf.Images {
		if n.Entries[image].Wanted == nil {
			missing++
		}
	}
	return missing
}

func withMissing(candidates []replicaCandidate, missing int) []replicaCandidate {
	var found []replicaCandidate
	for _, c := range candidates {
		if c.missing == missing {
			found = append(found, c)
		}
	}
	return found
}

// stableHash is the same for the same two names, and otherwise spread evenly.
func stableHash(first, second string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(first)) // a hash does not fail
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(second))
	return h.Sum64()
}
