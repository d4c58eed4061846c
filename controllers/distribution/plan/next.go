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
	d := newPlanner(state, limits.orDefault())
	for _, im := range d.images {
		d.resolveDigest(im)
		d.listPlacements(im)
	}
	d.readKubeletImages()
	// Seeds go before waves, in every image: a wave needs what a seed brings.
	for _, im := range d.images {
		d.keepEntries(im)
		d.ensureResolver(im)
		for _, g := range im.groups {
			d.promoteSeeds(im, g)
		}
	}
	d.admitWaves()
	return d.buildStep()
}

// planner is a plan in the making.
type planner struct {
	now          time.Time
	limits       Limits
	nodes        []*node     // by name
	prefetches   []*prefetch // by key
	images       []*image    // by name
	nextHistory  map[string]imageHistory
	demands      []nodeDemand // scratch, by node index
	runningPulls int          // running and ordered now, of all images
	wake         time.Time
}

// node is a Node and what the plan knows of it besides.
type node struct {
	*Node
	index int
	// silent: the agent has left a spec unacknowledged for too long.
	silent bool
	// answers: the agent is known to run.
	agentKnown bool
	// slotProgressAt is when its slots were last seen to be of use to those who wait for one.
	slotProgressAt time.Time
	// starvedImages counts the images that the mirror does not serve it, pulls those that it pulls
	// otherwise.
	starvedImages, progressingImages int
	// size is what is wanted here, while that is counted.
	size *setSize
	// imageCount counts the images it holds or is the seed of.
	imageCount int
	// changes are the images whose entry changes; nil means no entry.
	changes []entryChange
}

// canPull says that the node can be expected to go on with a pull.
func (n *node) canPull() bool { return n.Ready && !n.silent && !n.Unsupported && !n.RuntimeDown }

// prefetch is a Prefetch and the nodes it wants.
type prefetch struct {
	*Prefetch
	index           int
	requestID       string
	targets         *targetNodes
	missingReplicas int
	// seedImages counts by node index the images of this prefetch that the node is the seed of.
	seedImages map[int]int
	// leftOutSecrets are the names of its pull secrets that found no place on some node.
	leftOutSecrets map[string]bool
}

// newPlanner looks at each node, prefetch and entry once.
func newPlanner(state State, limits Limits) *planner {
	d := &planner{
		now:         state.Now,
		limits:      limits,
		nextHistory: make(map[string]imageHistory),
		demands:     make([]nodeDemand, len(state.Nodes)),
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
		d.detectSilentAgent(n)
	}
	for i := range state.Prefetches {
		d.prefetches = append(d.prefetches, &prefetch{Prefetch: &state.Prefetches[i], seedImages: make(map[int]int)})
	}
	slices.SortFunc(d.prefetches, func(a, b *prefetch) int { return strings.Compare(a.Key, b.Key) })
	for i, p := range d.prefetches {
		p.index = i
	}
	d.selectNodes()
	d.listImages(state.Memory)
	return d
}

// detectSilentAgent finds out whether the agent of a node answers.
func (d *planner) detectSilentAgent(n *node) {
	if !n.Acknowledged {
		deadline := d.orNow(n.HeardAt).Add(d.limits.AgentTimeout)
		n.silent = !d.now.Before(deadline)
		d.wakeAt(deadline)
	}
}

// orNow reads a time that may be unknown, which counts as now.
func (d *planner) orNow(t time.Time) time.Time {
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
func (d *planner) wakeAt(t time.Time) {
	if t.After(d.now) && (d.wake.IsZero() || t.Before(d.wake)) {
		d.wake = t
	}
}
