// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"
	"time"
)

// Next says which nodes pull which images now, and from where. It may be repeated at
// any time: what is under way is carried on, and a Step that was only partly written
// is completed by the next.
func Next(state State, limits Limits) Step {
	d := survey(state, limits.orDefault())
	for _, im := range d.images {
		d.resolve(im)
		d.seat(im)
	}
	d.readHints()
	// Seeds go before waves, in every image: a wave needs what a seed brings.
	for _, im := range d.images {
		d.carryOn(im)
		d.appointResolver(im)
		for _, g := range im.groups {
			d.appointSeeds(im, g)
		}
	}
	d.admitWaves()
	return d.step()
}

// draft is a plan in the making.
type draft struct {
	now        time.Time
	limits     Limits
	nodes      []*node     // by name
	prefetches []*prefetch // by key
	images     []*image    // by name
	memory     map[string]recollection
	claims     []claim // scratch, by node index
	pulls      int     // running and ordered now, of all images
	wake       time.Time
}

// node is a Node and what the plan knows of it besides.
type node struct {
	*Node
	index int
	// silent: the agent has left a spec unacknowledged for too long.
	silent bool
	// answers: the agent is known to run.
	answers bool
	// turnedAt is when its slots were last seen to be of use to those who wait for one.
	turnedAt time.Time
	// vain counts the images that the mirror does not serve it, pulls those that it pulls
	// otherwise.
	vain, pulls int
	// crowd is what is wanted here, while that is counted.
	crowd *crowd
	// holds counts the images it holds or is the seed of.
	holds int
	// changed are the images whose entry changes; nil means no entry.
	changed []change
}

// works says that the node can be expected to go on with a pull.
func (n *node) works() bool { return n.Ready && !n.silent && !n.Unsupported && !n.RuntimeDown }

// prefetch is a Prefetch and the nodes it wants.
type prefetch struct {
	*Prefetch
	index   int
	mark    string
	scope   *scope
	missing int
	// seeds counts by node index the images of this prefetch that the node is the seed of.
	seeds map[int]int
	// leftOut are the names of its pull secrets that found no place on some node.
	leftOut map[string]bool
}

// survey looks at each node, prefetch and entry once.
func survey(state State, limits Limits) *draft {
	d := &draft{
		now:    state.Now,
		limits: limits,
		memory: make(map[string]recollection),
		claims: make([]claim, len(state.Nodes)),
	}
	all := make([]node, len(state.Nodes))
	d.nodes = make([]*node, len(state.Nodes))
	for i := range state.Nodes {
		all[i].Node = &state.Nodes[i]
		d.nodes[i] = &all[i]
	}
	slices.SortFunc(d.nodes, func(a, b *node) int { return strings.Compare(a.Name, b.Name) })
	for i, n := range d.nodes {
		n.index = i
		d.listen(n)
	}
	for i := range state.Prefetches {
		d.prefetches = append(d.prefetches, &prefetch{Prefetch: &state.Prefetches[i], seeds: make(map[int]int)})
	}
	slices.SortFunc(d.prefetches, func(a, b *prefetch) int { return strings.Compare(a.Key, b.Key) })
	for i, p := range d.prefetches {
		p.index = i
	}
	d.selectNodes()
	d.listImages(state.Memory)
	return d
}

// listen finds out whether the agent of a node answers.
func (d *draft) listen(n *node) {
	if !n.Acknowledged {
		deadline := d.since(n.HeardAt).Add(d.limits.AgentTimeout)
		n.silent = !d.now.Before(deadline)
		d.wakeAt(deadline)
	}
}

// since reads a time that may be unknown, which counts as now.
func (d *draft) since(t time.Time) time.Time {
	if t.IsZero() {
		return d.now
	}
	return t
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// wakeAt asks to be called again at t, if that is to come.
func (d *draft) wakeAt(t time.Time) {
	if t.After(d.now) && (d.wake.IsZero() || t.Before(d.wake)) {
		d.wake = t
	}
}
