// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Some images are imported into the nodes, and are in no registry. What all desired nodes have under
// the tag of such an image is what the tag means. They are asked only until they agree: from then on
// the image is one whose digest is known, which a node that joins gets from the mirror.

// asksLocally reports whether the node is to say what it has under the name.
func (e Entry) asksLocally() bool {
	return e.Wanted != nil && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyLocal && e.Wanted.Digest == ""
}

// readNodes finds out what the nodes have under the name of an image, for those of the prefetches
// that go by that. It returns the digest that they agree on, or an empty one.
func (im *image) readNodes(asking []*prefetch) (agreed string) {
	var first *node
	complete := len(asking) > 0
	digests := im.digestsByNode()
	for _, n := range desiredBy(asking) {
		if !n.canPull() {
			continue // it says nothing; what it has is compared with the digest once it is back
		}
		digest, known := digests[n]
		switch {
		case !known:
			complete = false
		case first == nil:
			first, agreed = n, digest
		case digest != agreed:
			im.disagreement = &Disagreement{Nodes: [2]string{first.Name, n.Name}, Digests: [2]string{agreed, digest}}
			return ""
		}
	}
	if !complete {
		return ""
	}
	return agreed
}

// digestsByNode are the digests that nodes have said, or were told after they had agreed.
func (im *image) digestsByNode() map[*node]string {
	digests := make(map[*node]string, len(im.entries))
	for _, e := range im.entries {
		switch {
		case e.Wanted == nil:
		case e.Wanted.Digest != "":
			digests[e.node] = e.Wanted.Digest
		case e.asksLocally() && e.presentDigest() != "":
			digests[e.node] = e.presentDigest()
		}
	}
	return digests
}

// desiredBy are the nodes that any of the prefetches desires, by index.
func desiredBy(prefetches []*prefetch) (nodes []*node) {
	for _, pf := range prefetches {
		nodes = append(nodes, pf.targets.desired...)
	}
	slices.SortFunc(nodes, func(a, b *node) int { return a.index - b.index })
	return slices.Compact(nodes)
}

// keptQuestion is the next entry of a node that is to say what it has: the same, or that digest once it
// is known. A node that has something else waits for its turn at the mirror.
func (im *image) keptQuestion(p *placement) *v1alpha1.NodeImage {
	switch {
	case im.asksNodes:
		return p.requirements.applyTo(p.Wanted)
	case p.state == present && p.target() == im.digest:
		return p.requirements.newEntry(im.name, im.digest, v1alpha1.RegistryPolicyMirror)
	}
	return nil
}

// askNodes has each desired node say what it has under the name.
func (im *image) askNodes() {
	if !im.asksNodes {
		return
	}
	for _, p := range im.placements {
		if p.desired && p.Wanted == nil && p.next == nil && p.node.canPull() && !p.removalPending() {
			p.next = p.requirements.newEntry(im.name, "", v1alpha1.RegistryPolicyLocal)
		}
	}
}
