// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "time"

// orNow replaces a time that is unknown by the present.
func (pl *planner) orNow(t time.Time) time.Time {
	if t.IsZero() {
		return pl.now
	}
	return t
}

// wakeAt has the controller ask for a plan again at t, if that is in the future.
func (pl *planner) wakeAt(t time.Time) {
	if t.After(pl.now) && (pl.wake.IsZero() || t.Before(pl.wake)) {
		pl.wake = t
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
