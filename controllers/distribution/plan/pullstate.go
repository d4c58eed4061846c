// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// pullStateOf reads the agent's answer in the light of what the spec asks.
func (pl *planner) pullStateOf(p *placement) pullState {
	switch {
	case p.Wanted == nil:
		return idle
	case !p.unanswered() && p.Status != nil && p.Status.State == v1alpha1.ImagePresent && p.Status.Digest == p.target():
		return present
	case !p.node.canPull():
		return lost
	case p.node.Acknowledged && p.Failed():
		return failed
	}
	deadline := pl.stallsAt(p)
	if !pl.now.Before(deadline) {
		return stalled
	}
	pl.wakeAt(deadline)
	return pulling
}

// stallsAt is when a node has made no progress for too long. A seed of many images keeps those that
// wait for a slot while it gets on with the others: another seed would fetch again the layers that
// they share. It also keeps what it unpacks: another would begin with it from the start.
func (pl *planner) stallsAt(p *placement) time.Time {
	since, patience := pl.orNow(p.ProgressAt), pl.limits.SeedTimeout
	switch {
	case !p.isSeed():
	case p.unpacking():
		patience *= unpackFactor
	case p.queued():
		since = latest(since, p.node.slotProgressAt)
	}
	return since.Add(patience)
}

// slotProgressAt is when an image last showed that the slots of its node's agent get on: something
// of it came, or it tried the mirror, and such tries end by themselves. A try at the upstream that
// began or ended shows nothing, because all of them may hang one after the other.
func (pl *planner) slotProgressAt(e Entry) time.Time {
	switch {
	case e.Status == nil:
		return time.Time{}
	case e.Status.State == v1alpha1.ImagePresent || e.Status.PulledBytes > 0:
		return pl.orNow(e.ProgressAt)
	case e.Status.Attempts > 0 && e.Wanted != nil && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyMirror:
		return pl.orNow(e.ChangedAt)
	}
	return time.Time{}
}

// unresponsive reports whether an agent that should have answered by now has not. Its opening goes
// to the next node, so that nodes without an agent do not delay the others one after the other.
// Should it answer after all, the wave is a little larger for a while.
func (pl *planner) unresponsive(p *placement) bool {
	if p.node.Acknowledged || p.Status != nil {
		return false
	}
	until := pl.orNow(p.ProgressAt).Add(answerTimeout)
	pl.wakeAt(until)
	return !pl.now.Before(until)
}
