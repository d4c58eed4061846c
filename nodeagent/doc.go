// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodeagent brings the images of a NodeImageSet's spec onto its node, and reports in the
// status how far it is.
//
// The Reconciler gives each new spec to the Agent. The Agent is one loop that owns all state.
// Checks, pulls and status writes run beside it, a bounded number at a time, and post their results
// to the loop. Each entry goes its own way:
//
//	      new entry, changed digest, image event, reconnect, VerifyInterval
//	                                 │
//	                                 ▼
//	┌────────────────────────────  check  ◀───────────────────────────┐
//	│ all there                      │ something missing              │
//	▼                                ▼                                │
//	Present                       Pending ──── a slot is free ──▶ Pulling
//	   │                           ▲   ▲                          │  │  │
//	   │ a new request ID          │   └── backoff 1 s … 1 min ───┘  │  │ done:
//	   └───────────────────────────┘        after an error           │  │ Present
//	                                                                 ▼
//	                     retry limit reached, or refused:         Failed
//
// A Failed entry is tried again once a minute, unless it was refused: after a refusal only a change
// of the spec's entry helps, or another program that brings the image, such as the kubelet. The
// retry limit is for failures in a row. A peer's count begins again at 0 with each try that brought
// any bytes from the mirror.
//
// A seed whose spec has a request ID that no answer covers asks the registry what the tag means
// now. The node then keeps the answer's digest until the spec names a newer one (see entry.wanted).
//
// Only this package reads and writes the API. From the API's package, the packages below it use the
// registry policies and image sources alone. Only nodeagent/containerd and the package mirror below
// it use containerd.
package nodeagent
