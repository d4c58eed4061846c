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
	// markBytes is one mark in the requests of spec and status.
	markBytes = 2 * 9
	// secretBytes is a reference to a Secret, without its names.
	secretBytes = 32
)

// crowd is what the prefetches of a node come to. Nodes with the same ones share it, so
// that there is never more to count than for each node by itself.
type crowd struct {
	images map[string]bool
	bytes  int
	nodes  int
	// size is what it comes to with the last prefetch that was asked about.
	asked *prefetch
	size  int
}

// with is what a crowd comes to with one prefetch more.
func (c *crowd) with(p *prefetch) int {
	if c.asked == p {
		return c.size
	}
	c.asked, c.size = p, c.bytes
	for _, image := range p.Images {
		if !c.images[image] {
			c.size += entryBytes + nameCopies*len(image)
		}
		c.size += markBytes
		for _, secret := range p.PullSecrets {
			c.size += secretBytes + len(secret.Namespace) + len(secret.Name)
		}
	}
	return c.size
}

func (c *crowd) add(p *prefetch) {
	c.bytes = c.with(p)
	c.asked = nil
	for _, image := range p.Images {
		c.images[image] = true
	}
}

// join adds a prefetch to what is wanted on some nodes. A crowd is copied only when some
// of its nodes leave it: as often as there are nodes, at the most.
func (p *prefetch) join(nodes []*node) {
	joining := make(map[*crowd]int)
	for _, n := range nodes {
		joining[n.crowd]++
	}
	became := make(map[*crowd]*crowd, len(joining))
	for c, count := range joining {
		next := c
		if count < c.nodes {
			next = &crowd{images: maps.Clone(c.images), bytes: c.bytes, nodes: count}
			c.nodes -= count
		}
		next.add(p)
		became[c] = next
	}
	for _, n := range nodes {
		n.crowd = became[n.crowd]
	}
}

func newCrowd(nodes int) *crowd {
	return &crowd{images: make(map[string]bool), nodes: nodes}
}

// crowded says that some node may have no room for all prefetches.
func (d *draft) crowded() bool {
	all := newCrowd(0)
	for _, p := range d.prefetches {
		all.add(p)
	}
	return all.bytes > maxSetBytes
}

// makeRoom leaves the prefetches without a node on which there is no room for them
// beside older ones, so that one too many disturbs nobody else.
func (d *draft) makeRoom() {
	empty := newCrowd(len(d.nodes))
	for _, n := range d.nodes {
		n.crowd = empty
	}
	byAge := slices.Clone(d.prefetches)
	slices.SortFunc(byAge, func(a, b *prefetch) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.Key, b.Key))
	})
	for _, p := range byAge {
		p.choose(func(n *node) bool { return n.crowd.with(p) <= maxSetBytes })
		p.join(slices.Concat(p.scope.desired, p.scope.kept))
	}
}

// choose leaves of the nodes that match those that are wanted: the replicas, or all, as
// far as they have room.
func (p *prefetch) choose(fits func(*node) bool) {
	matching := p.scope
	chosen := &scope{}
	for _, n := range matching.desired {
		if fits(n) {
			chosen.desired = append(chosen.desired, n)
		} else {
			chosen.full = append(chosen.full, n)
		}
	}
	for _, n := range matching.kept {
		if fits(n) {
			chosen.kept = append(chosen.kept, n)
		}
	}
	if p.Replicas != nil {
		chosen.desired = pick(p.Prefetch, chosen.desired)
		count := int(*p.Replicas)
		chosen.full = chosen.full[:min(len(chosen.full), count-len(chosen.desired))]
		p.missing = count - len(chosen.desired) - len(chosen.full)
	} else if len(chosen.full) == 0 && len(chosen.kept) == len(matching.kept) {
		return // as it was, and shared
	}
	chosen.list()
	p.scope = chosen
}
