// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// canPull reports whether the node can be expected to go on with a pull.
func (n *node) canPull() bool { return n.Ready && !n.silent && !n.Unsupported && !n.RuntimeDown }

// available reports whether the node may be given something new to do.
func (p *placement) available() bool {
	return p.desired && p.node.canPull() && !p.node.DiskPressure && !p.removalPending()
}

// admissible reports whether the node may be given something new to do for a prefetch that knows
// the digest.
func (p *placement) admissible() bool { return p.available() && p.requirements.resolved }

// removalPending reports whether the agent has not yet seen that the entry is gone. If the entry
// came back now, the agent would notice nothing.
func (p *placement) removalPending() bool {
	return p.Wanted == nil && p.Status != nil && !p.node.Acknowledged
}

// awaitingAck reports whether a seed cannot be demoted yet: its agent has not acknowledged the
// promotion, so the plan could not tell afterwards whether it had begun. The wait ends when the
// agent is silent.
func (p *placement) awaitingAck() bool {
	return p.isSeed() && p.state != present && !p.node.Acknowledged && !p.node.silent
}

// mayStillPull reports whether a node that is no seed may still be pulling from the upstream,
// because its agent has not yet seen the demotion. An agent goes on trying after it reported
// Failed, and one that asks for a tag goes on to pull what the tag means now.
func (im *image) mayStillPull(p *placement) bool {
	switch {
	case p.isSeed() || p.node.Acknowledged || p.node.silent:
		return false
	case p.Status != nil && p.Status.State == v1alpha1.ImagePresent:
		return p.Wanted != nil && p.Wanted.Request != "" && p.Wanted.Request != p.Status.Request
	}
	_, failed := im.history.failures[p.node.Name]
	return failed || p.Status != nil && p.Status.Source == v1alpha1.SourceUpstream
}

// serves reports whether others can get the digest from the node, and its spec asks for that
// digest.
func (p *placement) serves(digest string) bool {
	return digest != "" && p.node.canPull() && p.state != idle && p.target() == digest && p.presentDigest() == digest
}

// staysSeed reports whether a seed is one in this plan as well.
func (p *placement) staysSeed() bool {
	return p.isSeed() && p.next != nil && p.next.RegistryPolicy == v1alpha1.RegistryPolicyDefault
}

// losesEntry reports whether a node loses an entry under disk pressure, because it does not have
// the image: it must not pull again what the kubelet has deleted, nor go on with a pull.
func (p *placement) losesEntry() bool {
	return p.node.DiskPressure && p.state != present && !p.awaitingAck()
}

// mirrorFailed reports whether a node has given up the present digest, because the mirror did not
// serve it.
func (p *placement) mirrorFailed() bool {
	return p.current && p.state == failed && p.FailedOnMirror()
}

// failedDespiteHolders reports whether the mirror failed a node although another node had the
// image.
func (pl *planner) failedDespiteHolders(g *platformGroup, p *placement) bool {
	return p.mirrorFailed() && g.holders > 0 && !pl.orNow(p.ChangedAt).Before(g.holdersSince)
}

// withinPullLimit reports whether one more pull stays within the limit of the cluster.
func (pl *planner) withinPullLimit(p *placement) bool {
	return p.counted || pl.limits.MaxConcurrentPulls <= 0 || pl.pulls < pl.limits.MaxConcurrentPulls
}

// countSeed notes for the prefetches of the image that a node is its seed, so that the node becomes
// the seed of their other images as well.
func (im *image) countSeed(n *node) {
	for _, pf := range im.prefetches {
		pf.seedImages[n.index]++
	}
}

// demote takes the upstream from a seed. What the node has stays pinned. The request IDs stay
// too, because they tell what the agent may be doing until it sees the demotion.
func (im *image) demote(p *placement) {
	p.demoted = true
	p.next = nil
	if digest := p.presentDigest(); digest != "" {
		p.next = p.requirements.newEntry(im.name, digest, v1alpha1.RegistryPolicyMirror)
		p.next.Request = p.Wanted.Request
	}
}
