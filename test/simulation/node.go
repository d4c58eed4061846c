// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// node is a machine with an agent that does what its spec says.
type node struct {
	simulation *simulation
	index      int
	deaf       bool
	gone       bool

	has       []bool // by layer
	have      int
	unpacked  time.Duration // when the layers that came so far are
	ready     bool
	upload    *pipe
	downloads map[int]*transfer // by layer

	policy  v1alpha1.RegistryPolicy
	turn    int             // changes with the policy, and makes what was begun before void
	queue   []int           // layers to ask for, for want of a stream
	resting []time.Duration // by layer, until when it is not asked for
	lookups []lookup        // by layer, what this node's mirror remembers

	generation int // of the spec that it has seen
	reports    int // that were made or announced
	pause      time.Duration
	status     *v1alpha1.NodeImageStatus // nil without an entry
}

// take is the agent seeing its spec.
func (n *node) take(generation int, policy v1alpha1.RegistryPolicy) {
	if n.deaf || n.gone {
		return
	}
	n.generation = generation
	n.pause = progress
	n.reportAfter(transient)
	if policy == n.policy {
		return
	}
	n.policy = policy
	n.turn++
	for layer, t := range n.downloads {
		t.cancel()
		delete(n.downloads, layer)
	}
	n.queue = nil
	switch {
	case policy == "":
		n.status = nil
		return
	case n.ready:
		n.status = n.present(v1alpha1.SourceLocal)
		return
	}
	n.status = &v1alpha1.NodeImageStatus{Name: image, Digest: digest, State: v1alpha1.ImagePulling}
	for layer := range n.has {
		if !n.has[layer] {
			n.queue = append(n.queue, layer)
		}
	}
	if policy == v1alpha1.RegistryPolicyMirror {
		// Each in an order of its own, so that peers have something to give each other.
		n.simulation.random.Shuffle(len(n.queue), func(i, j int) { n.queue[i], n.queue[j] = n.queue[j], n.queue[i] })
	}
	begin, turn := resolving, n.turn
	if policy == v1alpha1.RegistryPolicyMirror {
		begin = 0
	}
	n.simulation.clock.after(begin, func() {
		if n.turn == turn {
			n.status.SizeBytes = int64(n.simulation.size())
			n.pump()
		}
	})
	n.finish()
}

// pump keeps as many downloads going as there are streams.
func (n *node) pump() {
	streams := n.simulation.peerStreams
	if n.policy == v1alpha1.RegistryPolicyDefault {
		streams = seedStreams
	}
	for len(n.downloads) < streams && len(n.queue) > 0 && !n.gone {
		layer := n.queue[0]
		n.queue = n.queue[1:]
		from := n.simulation.uplink
		if n.policy == v1alpha1.RegistryPolicyMirror {
			if n.resting[layer] > n.simulation.clock.now {
				n.askLater(layer)
				continue
			}
			if from = n.simulation.mirror(n, layer); from == nil {
				n.resting[layer] = n.simulation.clock.now + n.simulation.rest
				n.askLater(layer)
				continue
			}
		}
		n.downloads[layer] = from.send(n.simulation.layer, func() { n.receive(layer) })
	}
}

// askLater asks for a layer once its rest is over.
func (n *node) askLater(layer int) {
	turn := n.turn
	n.simulation.clock.after(n.resting[layer]-n.simulation.clock.now, func() {
		if n.turn == turn {
			n.queue = append(n.queue, layer)
			n.pump()
		}
	})
}

func (n *node) receive(layer int) {
	delete(n.downloads, layer)
	n.has[layer] = true
	n.have++
	s := n.simulation
	n.unpacked = max(n.unpacked, s.clock.now) + seconds(s.layer/s.unpack)
	s.clock.after(visible, func() { s.holders[layer] = append(s.holders[layer], n) })
	if n.policy == v1alpha1.RegistryPolicyDefault {
		s.seedReceived(n)
	}
	n.finish()
	n.pump()
}

// finish reports the image once all of it is there and unpacked.
func (n *node) finish() {
	if n.have < len(n.has) {
		return
	}
	n.simulation.clock.after(max(0, n.unpacked-n.simulation.clock.now), func() {
		if n.ready || n.gone {
			return
		}
		n.ready = true
		source := v1alpha1.SourceMirror
		if n.policy == v1alpha1.RegistryPolicyDefault {
			source = v1alpha1.SourceUpstream
		}
		n.status = n.present(source)
		n.simulation.readied(n)
		n.report()
	})
}

func (n *node) present(source v1alpha1.ImageSource) *v1alpha1.NodeImageStatus {
	return &v1alpha1.NodeImageStatus{Name: image, Digest: digest, State: v1alpha1.ImagePresent, Source: source,
		SizeBytes: int64(n.simulation.size()), PulledBytes: int64(n.simulation.size())}
}

// reportAfter tells the controller what there is to tell then, unless a report comes before.
func (n *node) reportAfter(delay time.Duration) {
	if n.simulation.controller == nil {
		return
	}
	n.reports++
	report := n.reports
	n.simulation.clock.after(delay, func() {
		if report == n.reports && !n.gone {
			n.report()
		}
	})
}

// report tells the controller how far the pull is, and while it goes on does so after ever longer
// pauses.
func (n *node) report() {
	n.reports++
	if n.status != nil && !n.ready {
		n.status.PulledBytes = int64(float64(n.have) * n.simulation.layer)
		n.reportAfter(n.pause)
		n.pause = min(2*n.pause, maxProgress)
	}
	n.simulation.report(n)
}

// vanish switches the machine off.
func (n *node) vanish() {
	n.gone = true
	n.turn++
	for layer, t := range n.downloads {
		t.cancel()
		delete(n.downloads, layer)
	}
}
