// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// keepEntries leaves each placement the entry that it has, as far as that is still right.
func (pl *planner) keepEntries() {
	for _, im := range pl.images {
		for _, p := range im.placements {
			switch {
			case p.Wanted == nil || p.requirements == nil && !p.awaitingAck():
			case p.asksLocally():
				p.next = im.keptQuestion(p)
			case !p.losesEntry():
				p.next = p.refreshedEntry()
			case p.isSeed():
				pl.recordFailure(im, p) // it may still pull until its agent has seen the demotion
				im.demote(p)            // a tag may have moved to an image that the disk has no room for
			}
		}
	}
}

// refreshedEntry is the entry as it was, with the present requirements and what the node found out.
func (p *placement) refreshedEntry() *v1alpha1.NodeImage {
	found := !p.unanswered() && p.target() != p.Wanted.Digest
	done := p.state == present && p.isSeed()
	if !found && !done && (p.requirements == nil || p.requirements.match(p.Wanted)) {
		return p.Wanted
	}
	entry := *p.Wanted
	if found {
		entry.Digest = p.target()
	}
	if done {
		// Should the image be deleted from the node, other nodes have it.
		entry.RegistryPolicy = v1alpha1.RegistryPolicyMirror
	}
	if p.requirements == nil {
		return &entry
	}
	return p.requirements.applyTo(&entry)
}
