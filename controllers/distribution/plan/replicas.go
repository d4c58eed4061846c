// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// candidate is a node that may be one of a prefetch's replicas.
type candidate struct {
	node *node
	// lacking is the number of images that its spec does not name yet; a node that
	// does not work lacks more than any other.
	lacking int
	// turn is its place among the nodes of its zone.
	turn int
	draw uint64
}

// pick chooses the replicas of a prefetch among the nodes that match, as far as there
// are enough: first those that have its images already, so that a choice once made
// stays; then from each zone in turn; last by a draw that does not change when other
// nodes come and go.
func pick(p *Prefetch, from []*node) []*node {
	count := int(*p.Replicas)
	if len(from) <= count {
		return from
	}
	candidates := make([]candidate, 0, len(from))
	for _, n := range from {
		candidates = append(candidates, candidate{node: n, lacking: lacking(p, n)})
	}
	if settled := those(candidates, 0); len(settled) >= count {
		candidates = settled // the usual case, and a short list
	}
	for i := range candidates {
		candidates[i].draw = draw(p.UID, candidates[i].node.Name)
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.node.Zone, b.node.Zone), byPreference(a, b))
	})
	for i := 1; i < len(candidates); i++ {
		if candidates[i].node.Zone == candidates[i-1].node.Zone {
			candidates[i].turn = candidates[i-1].turn + 1
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.lacking, b.lacking), cmp.Compare(a.turn, b.turn), byPreference(a, b))
	})
	chosen := make([]*node, 0, count)
	for _, c := range candidates[:count] {
		chosen = append(chosen, c.node)
	}
	slices.SortFunc(chosen, func(a, b *node) int { return cmp.Compare(a.index, b.index) })
	return chosen
}

func byPreference(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.lacking, b.lacking), cmp.Compare(a.draw, b.draw), cmp.Compare(a.node.index, b.node.index))
}

func lacking(p *Prefetch, n *node) int {
	if !n.works() || n.DiskPressure {
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

func those(candidates []candidate, lacking int) []candidate {
	var those []candidate
	for _, c := range candidates {
		if c.lacking == lacking {
			those = append(those, c)
		}
	}
	return those
}

// draw is the same for the same two names, and otherwise as if by chance.
func draw(first, second string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(first)) // a hash does not fail
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(second))
	return h.Sum64()
}
