// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package plan decides which node pulls which image now, and from where. It is pure: it has no
// client, no clock and no randomness, and the same State gives the same Step.
//
// # One image on one node
//
// A node's spec names an image only from the node's turn on. So a node that pulls from the
// mirror costs one write of its spec, and one or two writes of its status by its agent, and
// more only while a long pull makes progress (docs/benchmarks.md). The digest in the entry is
// the one that the node is to have. A node that waits for its turn at a new digest keeps the
// entry of the old one, and with it the pin.
//
//	             no entry, or another digest ◀───────────────┐
//	                │                │                       │
//	  promoted      │                │ admitted: a wave      │ no node had it: the entry
//	  to seed       │                │ has an opening        │ goes, and comes again
//	                ▼                ▼                       │
//	┌────────▶  Default           Mirror ── NotOnMirror ─────┤
//	│               │ Present        │      after retries    │ some node had it
//	│               ▼                │ Present               ▼
//	│           Mirror, Present ◀────┘           waits to be promoted as well
//	│                                                        │
//	└────────────────────────────────────────────────────────┘
//
//	Default ── Failed, stalled, or its node or agent lost ──▶ demoted, as soon as another
//	           node can take over or its own backoff is over: no entry, or Mirror
//
// A seed that has the image becomes Mirror, so that an image deleted there comes back from
// peers. An entry that no prefetch wants any more goes at once.
//
// # The limit of the upstream
//
// The invariant: at most UpstreamPullers nodes pull one image, for one platform, from the
// upstream. A node is promoted only while fewer seeds than that, in the state as it is, are in
// specs or may still be pulling. It follows that one step demotes a seed and a later one
// promotes the next. A demoted seed counts until its agent has acknowledged the demotion. A
// seed whose agent has not acknowledged its promotion is not demoted, because the plan could
// not tell afterwards whether it had begun. AgentTimeout ends both: the plan takes a silent
// agent to be gone. Should it run all the same, two nodes may pull at a time.
//
// A seed stalls when its image has made no progress for SeedTimeout. While the image waits for
// a slot of the agent, the seed stalls only if, for as long, no other image of the node has
// received anything and no try at the mirror has ended: the images of one prefetch share a
// seed, and an agent pulls a few at a time. A seed that has received everything and unpacks it
// has longer, because its agent has nothing to report meanwhile.
//
// Images of one prefetch often share layers, so they move together: a seed that has stalled or
// failed with one of them keeps it while it pulls another, for three times SeedTimeout longer. And
// no node takes one of them over that could not take another yet, because its agent has yet to see
// that an earlier entry is gone.
//
// # Tags
//
// The resolver is the seed whose entry has request IDs that it has not answered yet. There is one
// for each image in the whole cluster: it asks the registry what the tag means, for every
// prefetch that has no answer for its present generation and refresh. Its answer is for all
// prefetches that want the image, and for all platforms. Until a prefetch has its answer, its
// nodes get nothing new and keep what they have, also while the registry is down. The resolver
// does the same: the digest in its entry is the one that it has, pinned and there for others,
// until the answer replaces it. A question that gets no answer is a failure of the question and
// not of the image.
//
// # Nodes
//
// The desired nodes are those where an ordinary Pod with the prefetch's selector and
// tolerations could be scheduled now. A node that matches but is not Ready, cordoned or under
// pressure is retained: Ready does not wait for it, it gets nothing new, and it loses nothing.
// So a node that comes back has its images pinned and needs no write. Two exceptions: under
// disk pressure a node loses the entries of images that it does not have, so that it does not
// pull what the kubelet deletes (they come again in a wave when the pressure is over); and a
// seed on a cordoned node may finish. A prefetch with replicas chooses another node in place of
// a retained one; when that returns, the prefetch keeps whichever it prefers. A taint that
// Kubernetes did not set by itself says whom the node is for: the entries go, as on a node
// whose labels no longer match.
//
// An agent that owes an answer for AgentTimeout is silent: it has left a spec unacknowledged for
// so long, or, while it has images to bring, has missed a heartbeat by so much. Its node is never a
// seed or a holder, takes no opening of a wave, and gets nothing more until the agent answers.
// The same applies to a node whose agent reports that its container runtime is not supported or
// does not answer.
//
// A node that the mirror serves nothing keeps its entry, and takes an opening only for seconds:
// after that the next nodes are let in (docs/design/0003).
//
// # Cost
//
// Work grows with nodes × images + prefetches × nodes. An image counts once for all of its
// prefetches that select alike.
package plan
