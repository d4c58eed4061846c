// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
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

// outcome is the result of a run.
type outcome struct {
	all    time.Duration // until every node that counts is ready; 0 if that never came
	copies float64       // of the image, over the uplink
	passes int
}

func newSimulation(m model, nodes int) *simulation {
	c := &clock{}
	s := &simulation{
		model:   m,
		clock:   c,
		random:  rand.New(rand.NewPCG(1, uint64(nodes))),
		uplink:  &pipe{clock: c, bandwidth: m.uplink},
		holders: make([][]*node, m.layers),
	}
	for i := range nodes {
		n := &node{simulation: s, index: i, has: make([]bool, m.layers), downloads: make(map[int]*transfer)}
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
		n.take(v1alpha1.RegistryPolicyDefault)
	}
	return s.run()
}

// planned is the outcome with the plan in control.
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
		o.passes = s.controller.passes
	}
	return o
}

// mirror is whom a node gets a layer from; nil is a miss.
func (s *simulation) mirror(to *node, layer int) *pipe {
	known := s.holders[layer]
	if len(known) == 0 || s.random.Float64() < s.falseMiss {
		return nil
	}
	from := known[s.random.IntN(len(known))]
	if from == to || from.gone {
		return nil
	}
	return from.upload
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

func (s *simulation) acknowledge(n *node) {
	if s.controller != nil {
		s.controller.acknowledge(n)
	}
}

func (s *simulation) report(n *node) {
	if s.controller != nil {
		status := n.status
		s.clock.after(message, func() { s.controller.hear(n, status) })
	}
}

// listening reports whether a node's progress decides something: a seed's does,
// and while nodes wait for their turn every node's. Without this the reports would be most of the
// simulation's work.
func (s *simulation) listening(n *node) bool {
	return s.controller != nil && (s.controller.waiting() || n.policy == v1alpha1.RegistryPolicyDefault)
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
	passes     int
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

// trigger schedules a pass, which sees all changes until then.
func (c *controller) trigger() {
	if !c.due {
		c.due = true
		c.simulation.clock.after(passInterval(len(c.simulation.nodes)), c.pass)
	}
}

func (c *controller) pass() {
	c.due = false
	c.passes++
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
	c.simulation.clock.after(message, func() { c.simulation.nodes[i].take(policy) })
}

// acknowledge records that a node has seen its spec.
func (c *controller) acknowledge(n *node) {
	generation := c.generation[n.index]
	c.simulation.clock.after(message, func() {
		if generation == c.generation[n.index] && !c.state.Nodes[n.index].Acknowledged {
			c.state.Nodes[n.index].Acknowledged = true
			if c.waiting() {
				c.trigger()
			}
		}
	})
}

// waiting reports whether some node has no entry for the image yet. Once all have one, news
// that a node gets on or is done change nothing, and passes that would say so are left
// out: they would be most of the simulation's work.
func (c *controller) waiting() bool { return c.unasked > 0 }

func (c *controller) hear(n *node, status v1alpha1.NodeImageStatus) {
	if c.waiting() {
		c.trigger()
	}
	view := &c.state.Nodes[n.index]
	view.HeardAt = c.now()
	was := view.Entries[image]
	entry := was
	entry.Status, entry.ChangedAt = &status, c.now()
	if plan.Progressed(was, entry) {
		entry.ProgressAt = c.now()
	}
	view.Entries[image] = entry
}

// lose records that Kubernetes has noticed the loss of a node.
func (c *controller) lose(n *node) {
	c.state.Nodes[n.index].Ready = false
	c.trigger()
}
