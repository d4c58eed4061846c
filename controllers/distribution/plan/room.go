// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// What a NodeImageSet comes to, in bytes of JSON. A spec of the controllers has the API
// server take the largest one that these figures admit, with the status that its agent
// writes when every image fails.
const (
	// maxSetBytes leaves a sixth of what etcd takes by default, 1.5 MiB, to spare.
	maxSetBytes = 1280 << 10
	// entryBytes is one image in the spec, in the status with the longest message, and
	// in the managed fields of both, without what is counted below.
	entryBytes = 2200
	// nameCopies is how often its name stands there.
	nameCopies = 4
	// requestIDBytes is one mark in the requests of spec and status.
	requestIDBytes = 2 * 9
	// secretBytes is a reference to a Secret, without its names.
	secretBytes = 32
)

// setSize is what the prefetches of a node come to. Nodes with the same ones share it, so
// that there is never more to count than for each node by itself.
type setSize struct {
	images map[string]bool
	bytes  int
	nodes  int
	// size is what it comes to with the last prefetch that was asked about.
	lastAsked *prefetch
	lastBytes int
}

// bytesWith is what a crowd comes to with one prefetch more.
func (c *setSize) bytesWith(p *prefetch) int {
	if c.lastAsked == p {
		return c.lastBytes
	}
	c.lastAsked, c.lastBytes = p, c.bytes
	for _, image := range p.Images {
		if !c.images[image] {
			c.lastBytes += entryBytes + nameCopies*len(image)
		}
		c.lastBytes += requestIDBytes
		for _, secret := range p.PullSecrets {
			c.lastBytes += secretBytes + len(secret.Namespace) + len(secret.Name)
		}
	}
	return c.lastBytes
}

func (c *setSize) add(p *prefetch) {
	c.bytes = c.bytesWith(p)
	c.lastAsked = nil
	for _, image := range p.Images {
		c.images[image] = true
	}
}

// addToSets adds a prefetch to what is wanted on some nodes. A crowd is copied only when some
// of its nodes leave it: as often as there are nodes, at the most.
func (p *prefetch) addToSets(nodes []*node) {
	joining := make(map[*setSize]int)
	for _, n := range nodes {
		joining[n.size]++
	}
	became := make(map[*setSize]*setSize, len(joining))
	for c, count := range joining {
		next := c
		if count < c.nodes {
			next = &setSize{images: maps.Clone(c.images), bytes: c.bytes, nodes: count}
			c.nodes -= count
		}
		next.add(p)
		became[c] = next
	}
	for _, n := range nodes {
		n.size = became[n.size]
	}
}

func newSetSize(nodes int) *setSize {
	return &setSize{images: make(map[string]bool), nodes: nodes}
}

// mayExceedCapacity says that some node may have no room for all prefetches.
func (d *planner) mayExceedCapacity() bool {
	all := newSetSize(0)
	for _, p := range d.prefetches {
		all.add(p)
	}
	return all.bytes > maxSetBytes
}

// enforceCapacity leaves the prefetches without a node on which there is no room for them
// beside older ones, so that one too many disturbs nobody else.
func (d *planner) enforceCapacity() {
	empty := newSetSize(len(d.nodes))
	for _, n := range d.nodes {
		n.size = empty
	}
	byAge := slices.Clone(d.prefetches)
	slices.SortFunc(byAge, func(a, b *prefetch) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.Key, b.Key))
	})
	for _, p := range byAge {
		p.chooseNodes(func(n *node) bool { return n.size.bytesWith(p) <= maxSetBytes })
		p.addToSets(slices.Concat(p.targets.desired, p.targets.retained))
	}
}

// chooseNodes leaves of the nodes that match those that are wanted: the replicas, or all, as
// far as they have room.
func (p *prefetch) chooseNodes(fits func(*node) bool) {
	matching := p.targets
	chosen := &targetNodes{}
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
	if p.Replicas != nil {
		chosen.desired = chooseReplicas(p.Prefetch, chosen.desired)
		count := int(*p.Replicas)
		chosen.full = chosen.full[:min(len(chosen.full), count-len(chosen.desired))]
		p.missingReplicas = count - len(chosen.desired) - len(chosen.full)
	} else if len(chosen.full) == 0 && len(chosen.retained) == len(matching.retained) {
		return // as it was, and shared
	}
	chosen.nameNodes()
	p.targets = chosen
}
