// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package plan decides which node pulls which image now, and from where. It is pure:
// no client, no clock, no randomness, and the same State gives the same Step.
//
// # One image on one node
//
// A node's spec names an image only once it is the node's turn, so that a node which
// pulls from the mirror costs one write of its spec, and its agent one or two of the
// status. The digest in the entry is what the node is to hold; while it waits for its
// turn at a new digest, it keeps the entry of the old one, and the pin with it.
//
//	             no entry, or another digest ◀───────────────┐
//	                │                │                       │
//	  appointed     │                │ admitted: a wave      │ nobody held it: taken
//	  as a seed     │                │ has room              │ back, comes again
//	                ▼                ▼                       │
//	┌────────▶  Default           Mirror ── NotOnMirror ─────┤
//	│               │ Present        │      after retries    │ somebody held it
//	│               ▼                │ Present               ▼
//	│           Mirror, holds it ◀───┘               in line for an upstream slot
//	│                                                        │
//	└────────────────────────────────────────────────────────┘
//
//	Default ── Failed, stalled, or its node or agent lost ──▶ relieved, as soon as
//	           another can take over or a rest is over: no entry, or Mirror
//
// A seed becomes Mirror once it holds the image, so that a deleted image comes back
// from its peers. What an entry becomes on a node that nothing wants it on any more:
// nothing, at once.
//
// # The limit of the upstream
//
// A node is appointed only while, in the state as it is, fewer than UpstreamPullers
// seeds of the image and platform are in specs or may still be pulling. So a seed is
// relieved in one step and the next appointed in a later one. A seed that was relieved
// counts until its agent has acknowledged that; one whose agent has not acknowledged
// its appointment is not relieved, because nothing would tell whether it had begun.
// Silence (AgentTimeout) ends both: then its agent is taken to be gone, and should it
// live in spite of that, two may pull at a time.
//
// A seed stalls when its image has not got on for SeedTimeout. One whose image waits for a
// slot on its node stalls when nothing has come to the node either, and none of its tries
// at the mirror has ended, for so long: images of one prefetch share a seed, and an agent
// pulls a few at a time. One that has received everything and unpacks has longer: its
// agent has nothing to tell meanwhile.
//
// # Tags
//
// The resolver is a seed with a request that it has not answered, the only one in the
// cluster: it is asked what the tag means, for every prefetch that has not been told
// since its generation or refresh. Its answer holds for all prefetches that want the
// image and for all platforms. Until a prefetch is told, its nodes get nothing new and
// keep what they have, even while the registry is down. So does the resolver: the digest
// in its entry is what it holds, pinned and there for others, until the answer takes its
// place. That it asks in vain is a failure of the question, not of the image.
//
// # Nodes
//
// Desired are the nodes where an ordinary Pod with the prefetch's selector and
// tolerations could be scheduled now. A node that matches but is not Ready, cordoned
// or under pressure is kept: Ready does not wait for it, it is given nothing new, and
// it loses nothing, so that a node which comes back has its images pinned and needs no
// write. Under disk pressure it loses what it does not hold, so that it does not pull
// again what the kubelet deletes; that comes again in a wave when the pressure is over. A seed on a cordoned node may finish. A prefetch with replicas chooses
// another node in its place, and when the first returns keeps whichever it prefers. A
// taint that Kubernetes did not set by itself says whom the node is for: there the
// entries go, as on a node whose labels no longer match.
//
// An agent that leaves a spec unacknowledged for AgentTimeout is silent: never a seed,
// no holder, in nobody's way, and given nothing more until it answers. So is one that
// says that its container runtime is not supported or does not answer.
//
// Nor is a node in others' way for long that the mirror serves nothing: it keeps its
// entry, and the next are let in (docs/design/0003).
//
// # Cost
//
// Work grows with nodes × images + prefetches × nodes, where an image counts once for
// those of its prefetches that select alike.
package plan
