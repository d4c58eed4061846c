// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// keepEntries gives each seat the entry that it has, as far as it is still right.
func (d *planner) keepEntries(im *image) {
	for _, s := range im.placements {
		switch {
		case s.entry.Wanted == nil || s.requirements == nil && !s.awaitingAck():
		case s.withdrawn():
			if s.isSeed() {
				d.recordFailure(im, s) // it lingers until its agent has heard of it
				im.demote(s)           // a tag may have moved to what it has no room for
			}
		default:
			s.next = s.refreshedEntry()
		}
	}
}

// withdrawn says that a node does not hold the image and is under disk pressure: what the
// kubelet has deleted there is not to come again, nor to go on coming.
func (s *placement) withdrawn() bool {
	return s.node.DiskPressure && s.state != present && !s.awaitingAck()
}

// refreshedEntry is the entry as it was, under the present terms and with what the node
// found out.
func (s *placement) refreshedEntry() *v1alpha1.NodeImage {
	wanted := s.entry.Wanted
	found := !unanswered(s.entry) && target(s.entry) != wanted.Digest
	done := s.state == present && s.isSeed()
	if !found && !done && (s.requirements == nil || s.requirements.matches(wanted)) {
		return wanted
	}
	entry := *wanted
	if found {
		entry.Digest = target(s.entry)
	}
	if done {
		// It has done its part. Should the image be deleted from the node, others have it.
		entry.RegistryPolicy = v1alpha1.RegistryPolicyMirror
	}
	if s.requirements == nil {
		return &entry
	}
	return s.requirements.applyTo(&entry)
}
