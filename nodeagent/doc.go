// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodeagent brings one node to what its NodeImageSet asks for, and says
// there how far it is.
//
// The Reconciler hands each new spec to the Agent. The Agent is one loop that owns
// all state; checks and pulls run beside it, bounded, and send back what they found.
// Each image goes its own way:
//
//	      new entry, changed digest, image event, reconnect, slow interval
//	                                 │
//	                                 ▼
//	┌────────────────────────────  check  ◀───────────────────────────┐
//	│ all there                      │ something missing              │
//	▼                                ▼                                │
//	Present                       Pending ──── a slot is free ──▶ Pulling
//	   │                           ▲   ▲                          │  │  │
//	   │ a new request             │   └── backoff 1 s … 1 min ───┘  │  │ done:
//	   └───────────────────────────┘        after an error           │  │ Present
//	                                                                 ▼
//	               limit reached, or a final error:               Failed
//
// Failed is not the end where trying again can help: such an image is tried again
// once a minute. Where it cannot (unauthorized, unknown, not for this platform) only
// a change of the spec's entry does, or another who brings the image, such as the
// kubelet. The limit counts tries in a row; for a peer, one that brought anything at
// all from the mirror begins the count anew.
//
// A request that the status has not answered has the registry asked what the tag
// means now; the answer counts as what shall be held until the spec names a digest
// that is newer than it (see entry.wanted).
//
// Only this package knows the API; only nodeagent/containerd knows containerd.
package nodeagent
