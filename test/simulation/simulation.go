// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

const (
	image  = "registry.example.com/team/app@sha256:d"
	digest = "sha256:d"
)

// simulation is one run of the model.
type simulation struct {
	model
	clock   *clock
	random  *rand.Rand
	nodes   []*node
	uplink  *pipe
	holders [][]*node // by layer, whom the mirror knows
	waiting int       // nodes that are counted and not ready
	lost    bool      // the seed was switched off
	last    time.Duration

	controller *controller
}

// outcome is what a run came to.
type outcome struct {
	all    time.Duration // until every node that counts is ready; 0 if that never came
	copies float64       // of the image, over the uplink
	writes float64       // of NodeImageSets, for each node: its spec and its status
}

// compare is by time; never is longest.
func (o outcome) compare(other outcome) int {
	if (o.all == 0) != (other.all == 0) {
		return -cmp.Compare(o.all, other.all)
	}
	return cmp.Compare(o.all, other.all)
}

func newSimulation(m model, nodes int) *simulation {
	c := &clock{}
	s := &simulation{
		model:   m,
		clock:   c,
		random:  rand.New(rand.NewPCG(1+m.draw, uint64(nodes))),
		uplink:  &pipe{clock: c, bandwidth: m.uplink},
		holders: make([][]*node, m.layers),
	}
	for i := range nodes {
		n := &node{simulation: s, index: i, has: make([]bool, m.layers), downloads: make(map[int]*transfer),
			resting: make([]time.Duration, m.layers), lookups: make([]lookup, m.layers)}
		n.upload = &pipe{clock: c, bandwidth: m.link}
		n.deaf = s.random.Float64() < m.deaf
		if !n.deaf {
			s.waiting++
		}
		s.nodes = append(s.nodes, n)
	}
	return s
}

// limit is when a run is given up.
const limit = 30 * 24 * time.Hour

// everyoneFromUpstream is what happens without Sluice and without a mirror.
func everyoneFromUpstream(m model, nodes int) outcome {
	s := newSimulation(m, nodes)
	s.lost = true // there is no seed
	for _, n := range s.nodes {
		n.take(0, v1alpha1.RegistryPolicyDefault)
	}
	return s.run()
}

// planned is what the plan makes of it.
func planned(m model, nodes int, limits plan.Limits) outcome {
	s := newSimulation(m, nodes)
	s.controller = newController(s, limits)
	s.controller.trigger()
	return s.run()
}

func (s *simulation) run() outcome {
	s.clock.run(limit, func() bool { return s.waiting == 0 })
	o := outcome{all: s.last, copies: s.uplink.carried / s.size()}
	if s.waiting > 0 {
		o.all = 0
	}
	if s.controller != nil {
		o.writes = float64(s.controller.writes) / float64(len(s.nodes))
	}
	return o
}

func (s *simulation) readied(n *node) {
	if !n.deaf {
		s.waiting--
		s.last = s.clock.now
	}
}

// seedReceived switches the first seed off when its time has come.
func (s *simulation) seedReceived(n *node) {
	if s.loseSeed == 0 || s.lost || float64(n.have) < s.loseSeed*float64(s.layers) {
		return
	}
	s.lost = true
	n.vanish()
	s.waiting--
	s.clock.after(notReady, func() { s.controller.lose(n) })
}

// report is a write of the status of the node's set, and the controller seeing it.
func (s *simulation) report(n *node) {
	if s.controller == nil {
		return
	}
	s.controller.writes++
	generation, status := n.generation, n.status
	if status != nil {
		told := *status
		status = &told
	}
	s.clock.after(message, func() { s.controller.hear(n, generation, status) })
}

// controller is the controller's part: it sees, plans and writes.
type controller struct {
	simulation *simulation
	limits     plan.Limits
	state      plan.State
	generation []int // of each node's spec
	unasked    int   // nodes that have no entry yet
	due        bool
	wake       time.Duration
	writes     int // of sets, by the controller and the agents
}

// epoch is when the simulation begins; the plan only compares times.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newController(s *simulation, limits plan.Limits) *controller {
	c := &controller{simulation: s, limits: limits, generation: make([]int, len(s.nodes)), unasked: len(s.nodes)}
	for i := range s.nodes {
		c.state.Nodes = append(c.state.Nodes, plan.Node{
			Name: fmt.Sprintf("node-%05d", i), Platform: "linux/amd64", Ready: true, Acknowledged: true,
			Entries: make(map[string]plan.Entry, 1),
		})
	}
	c.state.Prefetches = []plan.Prefetch{{Key: "team/app", UID: "app", Generation: 1, Images: []string{image}, RetryLimit: 3}}
	return c
}

func (c *controller) now() time.Time { return epoch.Add(c.simulation.clock.now) }

// trigger has a pass made soon, together with what else happens until then.
func (c *controller) trigger() {
	if !c.due {
		c.due = true
		c.simulation.clock.after(passInterval(len(c.simulation.nodes)), c.pass)
	}
}

func (c *controller) pass() {
	c.due = false
	c.state.Now = c.now()
	step := plan.Next(c.state, c.limits)
	c.state.Memory = step.Memory
	for i := range c.state.Nodes {
		if set, ok := step.Sets[c.state.Nodes[i].Name]; ok {
			c.write(i, set)
		}
	}
	if len(step.Sets) > 0 {
		c.trigger()
	}
	if !step.WakeAt.IsZero() {
		c.wakeAt(step.WakeAt.Sub(epoch))
	}
}

func (c *controller) wakeAt(at time.Duration) {
	c.wake = at
	c.simulation.clock.after(max(0, at-c.simulation.clock.now), func() {
		if c.wake == at {
			c.trigger()
		}
	})
}

// write changes a node's spec, and the agent sees it.
func (c *controller) write(i int, set []v1alpha1.NodeImage) {
	n := &c.state.Nodes[i]
	if n.Acknowledged {
		n.HeardAt = c.now()
	}
	n.Acknowledged = false
	c.writes++
	c.generation[i]++
	entry := plan.Entry{Status: n.Entries[image].Status, ChangedAt: c.now(), ProgressAt: c.now()}
	var policy v1alpha1.RegistryPolicy
	if n.Entries[image].Wanted != nil {
		c.unasked++
	}
	if len(set) > 0 {
		c.unasked--
		entry.Wanted = &set[0]
		policy = set[0].RegistryPolicy
	}
	n.Entries[image] = entry
	generation := c.generation[i]
	c.simulation.clock.after(message, func() { c.simulation.nodes[i].take(generation, policy) })
}

// waiting says that some node has yet to be asked for the image. Once none is, news
// that a node gets on or is done change nothing, and passes that would say so are left
// out: they would be most of the simulation's work.
func (c *controller) waiting() bool { return c.unasked > 0 }

func (c *controller) hear(n *node, generation int, status *v1alpha1.NodeImageStatus) {
	if c.waiting() {
		c.trigger()
	}
	view := &c.state.Nodes[n.index]
	view.HeardAt = c.now()
	view.Acknowledged = generation == c.generation[n.index]
	was := view.Entries[image]
	entry := was
	entry.Status, entry.ChangedAt = status, c.now()
	if plan.Progressed(was, entry) {
		entry.ProgressAt = c.now()
	}
	view.Entries[image] = entry
}

// lose is Kubernetes having noticed that a node is gone.
func (c *controller) lose(n *node) {
	c.state.Nodes[n.index].Ready = false
	c.trigger()
}
