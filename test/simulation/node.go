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

	policy v1alpha1.RegistryPolicy
	turn   int   // changes with the policy, and makes what was begun before void
	queue  []int // layers to ask for, for want of a stream
	status v1alpha1.NodeImageStatus
}

// take is the agent seeing its spec.
func (n *node) take(policy v1alpha1.RegistryPolicy) {
	if n.deaf || n.gone {
		return
	}
	n.simulation.acknowledge(n)
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
	if n.ready || policy == "" {
		return
	}
	n.status = v1alpha1.NodeImageStatus{Name: image, Digest: digest, State: v1alpha1.ImagePulling}
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
			n.simulation.report(n)
			n.pump()
		}
	})
	n.keepReporting(turn, progress)
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
			if from = n.simulation.mirror(n, layer); from == nil {
				n.askAgain(layer)
				continue
			}
		}
		n.downloads[layer] = from.send(n.simulation.layer, func() { n.receive(layer) })
	}
}

func (n *node) askAgain(layer int) {
	turn := n.turn
	n.simulation.clock.after(missPause, func() {
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
		n.simulation.readied(n)
		n.status.State = v1alpha1.ImagePresent
		n.status.Source = v1alpha1.SourceMirror
		if n.policy == v1alpha1.RegistryPolicyDefault {
			n.status.Source = v1alpha1.SourceUpstream
		}
		n.simulation.report(n)
	})
}

// keepReporting tells the controller how far the pull is, after ever longer pauses.
func (n *node) keepReporting(turn int, pause time.Duration) {
	n.simulation.clock.after(pause, func() {
		if n.turn != turn || n.ready || n.gone || !n.simulation.listening(n) {
			return
		}
		n.status.PulledBytes = int64(float64(n.have) * n.simulation.layer)
		n.simulation.report(n)
		n.keepReporting(turn, min(2*pause, maxProgress))
	})
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
