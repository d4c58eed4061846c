// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// carryOn gives each seat the entry that it has, as far as it is still right.
func (im *image) carryOn() {
	for _, s := range im.seats {
		if s.entry.Wanted != nil && (s.terms != nil || s.bound()) {
			s.next = s.sameAgain()
		}
	}
}

// sameAgain is the entry as it was, under the present terms and with what the node
// found out.
func (s *seat) sameAgain() *v1alpha1.NodeImage {
	wanted := s.entry.Wanted
	found := wanted.Digest == "" && !unanswered(s.entry)
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
