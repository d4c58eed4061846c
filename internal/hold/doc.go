// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hold decides when the rollout of a Deployment is held and when it is let
// go. It is pure: the webhook asks [Decide] as a Deployment is written, the gate
// controller asks [Next] as time and ImagePrefetches move on.
//
// A hold is three things together: spec.paused, the label sluice.dev/hold with the
// hash of the images that are waited for, and the annotation sluice.dev/held-at. A
// pause without the label is the owner's, and is never undone.
//
//	          new images, or resumed,            evidence, nothing to wait for, a
//	          and evidence is missing            rollback, opted out, or timed out
//	rolling ─────────────────────────▶ held ───────────────────────────────▶ rolling
//	   ▲                                 │                              (released += hash)
//	   │ owner resumes,                  │ owner applies a pause of
//	   │ nothing missing                 ▼ their own
//	   └──────────────────────────── owner's pause ◀── owner pauses ── rolling
//
// Evidence is in evidence.go, and judge.go says what it leads to (docs/design/0005).
//
// The annotation sluice.dev/released has the hashes of the last ten sets of images that
// were let through: they are never held again. A Deployment that is created with one has it
// from elsewhere, and it is dropped.
package hold
