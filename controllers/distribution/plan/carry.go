// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// carryOn gives each seat the entry that it has, as far as it is still right.
func (d *draft) carryOn(im *image) {
	for _, s := range im.seats {
		switch {
		case s.entry.Wanted == nil || s.terms == nil && !s.bound():
		case s.withheld():
			if s.isSeed() {
				d.remember(im, s) // it lingers until its agent has heard of it
				im.relieve(s)     // a tag may have moved to what it has no room for
			}
		default:
			s.next = s.sameAgain()
		}
	}
}

// withheld says that a node does not hold the image and is under disk pressure: what the
// kubelet has deleted there is not to come again, nor to go on coming.
func (s *seat) withheld() bool {
	return s.node.DiskPressure && s.stand != holding && !s.bound()
}

// sameAgain is the entry as it was, under the present terms and with what the node
// found out.
func (s *seat) sameAgain() *v1alpha1.NodeImage {
	wanted := s.entry.Wanted
	found := !unanswered(s.entry) && target(s.entry) != wanted.Digest
	done := s.stand == holding && s.isSeed()
	if !found && !done && (s.terms == nil || s.terms.asked(wanted)) {
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
	if s.terms == nil {
		return &entry
	}
	return s.terms.renew(&entry)
}
