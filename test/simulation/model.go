// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"math/bits"
	"time"
)

const (
	mebibyte = 1 << 20
	megabit  = 1e6 / 8
)

// model is what is assumed of the world. What it leaves out: routes within the
// network, the manifest and the config, the disk but for unpacking.
type model struct {
	name   string
	layers int
	layer  float64 // bytes, compressed
	// uplink is shared by all that goes to the registry; link is what a node can send,
	// and what it can receive. Bytes per second.
	uplink, link float64
	// peerStreams is how many layers a node gets from the mirror at a time. With more
	// than one it may receive more than its link carries: the model is too kind there.
	peerStreams int
	// unpack is compressed bytes per second; layers are unpacked as they come, one
	// after the other.
	unpack float64

	// deaf is the share of nodes whose agent does not run. They are not counted.
	deaf float64
	// falseMiss is the share of searches that the mirror gives up although somebody has the
	// blob.
	falseMiss float64
	// fresh says that the mirror searches again for each request, and keeps nothing.
	fresh bool
	// rest is how long a peer does not ask again for a layer that was missed.
	rest time.Duration
	// draw numbers the runs that differ in what chance decides alone.
	draw uint64
	// loseSeed is after what share of its pull the first seed is switched off.
	loseSeed float64
}

// How Spegel, containerd, the agents and the controller behave.
const (
	// visible is how long after a blob is committed others get it from the mirror.
	visible = 30 * time.Millisecond
	// seedStreams is how many layers containerd pulls at a time.
	seedStreams = 3
	// resolving is the HEAD and the manifest, before the first layer.
	resolving = 300 * time.Millisecond
	// message is one way between controller and agent, through the API server.
	message = 50 * time.Millisecond
	// notReady is how long Kubernetes takes to notice that a node is gone.
	notReady = 45 * time.Second
	// transient is how long after a change an agent reports it, with all that came until then.
	// Only what the controller waits for is reported at once.
	transient = time.Second
	// progress is the time from there to the next report of how far a pull is; each further
	// one is twice as long, up to maxProgress.
	progress    = 2 * time.Second
	maxProgress = 30 * time.Second
)

// passInterval is how often the controller plans at most. A pass over many nodes
// takes its time.
func passInterval(nodes int) time.Duration {
	return 50*time.Millisecond + time.Duration(nodes)*20*time.Microsecond
}

func (m model) size() float64 { return float64(m.layers) * m.layer }

// onePull is how long one node alone takes from the upstream.
func (m model) onePull() time.Duration {
	m.deaf, m.loseSeed = 0, 0
	return everyoneFromUpstream(m, 1).all
}

// optimum is a bound from below that no plan of this model can beat: the image comes
// over the uplink once; after its last blob each holder can give it to one other node
// in the time of one transfer, so that holders double; and it is unpacked.
func (m model) optimum(nodes int) time.Duration {
	doublings := float64(bits.Len(uint(nodes - 1)))
	return resolving + seconds(m.size()/math.Min(m.uplink, m.link)+doublings*m.layer/m.link+m.layer/m.unpack)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
