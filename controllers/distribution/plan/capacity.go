// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// The size of a NodeImageSet is estimated in bytes of JSON. A test of the controllers has the API
// server store the largest set that these figures admit, with the status that its agent writes when
// every image fails.
const (
	// maxSetBytes leaves a sixth of what etcd takes by default, 1.5 MiB, to spare.
	maxSetBytes = 1280 << 10
	// entryBytes is one image in the spec and in the status with the longest message, without what is
	// counted below. The managed fields of atomic lists do not grow with them.
	entryBytes = 1750
	// nameCopies is how often the name of an image stands there.
	nameCopies = 2
	// requestIDBytes is one request ID in spec and status.
	requestIDBytes = 2 * 9
	// secretBytes is a reference to a Secret, without its names, and accountBytes how much longer one to
	// a ServiceAccount is.
	secretBytes, accountBytes = 32, 24
)

// mayExceedCapacity reports whether all prefetches together would be too large for one node's set.
// Otherwise there is nothing to count by node.
func (pl *planner) mayExceedCapacity() bool {
	all := newSetSize(0)
	for _, pf := range pl.prefetches {
		all.add(pf)
	}
	return all.bytes > maxSetBytes
}

// enforceCapacity leaves a prefetch without the nodes whose sets have no room for it beside older
// ones, so that one prefetch too many disturbs no other.
func (pl *planner) enforceCapacity() {
	empty := newSetSize(len(pl.nodes))
	for _, n := range pl.nodes {
		n.size = empty
	}
	byAge := slices.Clone(pl.prefetches)
	slices.SortFunc(byAge, func(a, b *prefetch) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.Key, b.Key))
	})
	for _, pf := range byAge {
		pf.chooseNodes(func(n *node) bool { return n.size.bytesWith(pf) <= maxSetBytes })
		pf.addToSets(slices.Concat(pf.targets.desired, pf.targets.retained))
	}
}

// addToSets adds a prefetch to the sets of some nodes. A size is copied only when some of its nodes
// part from the others, which happens at most as often as there are nodes.
func (pf *prefetch) addToSets(nodes []*node) {
	joining := make(map[*setSize]int)
	for _, n := range nodes {
		joining[n.size]++
	}
	successors := make(map[*setSize]*setSize, len(joining))
	for s, count := range joining {
		successor := s
		if count < s.nodes {
			successor = &setSize{images: maps.Clone(s.images), bytes: s.bytes, nodes: count}
			s.nodes -= count
		}
		successor.add(pf)
		successors[s] = successor
	}
	for _, n := range nodes {
		n.size = successors[n.size]
	}
}

func newSetSize(nodes int) *setSize {
	return &setSize{images: make(map[string]bool), nodes: nodes}
}

// bytesWith is what a set comes to with one prefetch more.
func (s *setSize) bytesWith(pf *prefetch) int {
	if s.last == pf {
		return s.withLast
	}
	s.last, s.withLast = pf, s.bytes
	for _, image := range pf.Images {
		if !s.images[image] {
			s.withLast += entryBytes + nameCopies*len(image)
		}
		s.withLast += requestIDBytes
		for _, secret := range pf.PullSecrets {
			s.withLast += secretBytes + len(secret.Namespace) + len(secret.Name)
			if secret.IsServiceAccount() {
				s.withLast += accountBytes
			}
		}
	}
	return s.withLast
}

func (s *setSize) add(pf *prefetch) {
	s.bytes = s.bytesWith(pf)
	s.last = nil
	for _, image := range pf.Images {
		s.images[image] = true
	}
}
