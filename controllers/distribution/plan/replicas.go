// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// replicaCandidate is a node that may be one of a prefetch's replicas.
type replicaCandidate struct {
	node *node
	// lacking is the number of images that its spec does not name yet; a node that
	// does not work lacks more than any other.
	lacking int
	// zoneRank is its place among the nodes of its zone.
	zoneRank int
	hash     uint64
}

// chooseReplicas chooses the replicas of a prefetch among the nodes that match, as far as there
// are enough: first those that have its images already, so that a choice once made
// stays; then from each zone in turn; last by a draw that does not change when other
// nodes come and go.
func chooseReplicas(p *Prefetch, from []*node) []*node {
	count := int(*p.Replicas)
	if len(from) <= count {
		return from
	}
	candidates := make([]replicaCandidate, 0, len(from))
	for _, n := range from {
		candidates = append(candidates, replicaCandidate{node: n, lacking: lacking(p, n)})
	}
	if settled := withLacking(candidates, 0); len(settled) >= count {
		candidates = settled // the usual case, and a short list
	}
	for i := range candidates {
		candidates[i].hash = stableHash(p.UID, candidates[i].node.Name)
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
		return cmp.Or(cmp.Compare(a.lacking, b.lacking), cmp.Compare(a.zoneRank, b.zoneRank), byPreference(a, b))
	})
	chosen := make([]*node, 0, count)
	for _, c := range candidates[:count] {
		chosen = append(chosen, c.node)
	}
	slices.SortFunc(chosen, func(a, b *node) int { return cmp.Compare(a.index, b.index) })
	return chosen
}

func byPreference(a, b replicaCandidate) int {
	return cmp.Or(cmp.Compare(a.lacking, b.lacking), cmp.Compare(a.hash, b.hash), cmp.Compare(a.node.index, b.node.index))
}

func lacking(p *Prefetch, n *node) int {
	if !n.canPull() || n.DiskPressure {
		return len(p.Images) + 1
	}
	lacking := 0
	for _, image := range p.Images {
		if n.Entries[image].Wanted == nil {
			lacking++
		}
	}
	return lacking
}

func withLacking(candidates []replicaCandidate, lacking int) []replicaCandidate {
	var those []replicaCandidate
	for _, c := range candidates {
		if c.lacking == lacking {
			those = append(those, c)
		}
	}
	return those
}

// stableHash is the same for the same two names, and otherwise as if by chance.
func stableHash(first, second string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(first)) // a hash does not fail
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(second))
	return h.Sum64()
}
