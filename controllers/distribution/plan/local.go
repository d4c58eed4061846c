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

// readNodes finds out what the nodes have under the name of an image, for those of the prefetches that
// go by that. While the digest is not known, all nodes of all of them must have the same. Once it is,
// no node of a further prefetch may have something else; one that has nothing gets it from the mirror.
func (pl *planner) readNodes(im *image, asking []*prefetch) {
	groups := [][]*prefetch{asking}
	if im.digest != "" {
		groups = slices.Collect(slices.Chunk(asking, 1))
	}
	known, answers := im.digest, im.localAnswers()
	for _, group := range groups {
		voters := pl.voters(im, group, known)
		digest, agreed := im.agreement(voters, known, answers)
		for _, pf := range group {
			if agreed {
				im.digest, im.resolved[pf] = digest, true
			} else {
				im.asking = append(im.asking, pf)
			}
		}
		for _, n := range voters {
			im.asked[n] = im.asked[n] || !agreed
		}
	}
}

// voters are the nodes of some prefetches whose word counts. One that joins came after the others, and
// gets what they have, unless there is no other to say it. One that cannot answer gets it once it is
// back.
func (pl *planner) voters(im *image, prefetches []*prefetch, known string) []*node {
	var voters, joined []*node
	for _, pf := range prefetches {
		for _, n := range pf.targets.desired {
			switch {
			case !n.canPull():
			case pl.joined.At(n.Name, im.name).IsZero():
				voters = append(voters, n)
			default:
				joined = append(joined, n)
			}
		}
	}
	if len(voters) == 0 && known == "" {
		return joined
	}
	return voters
}

// agreement returns the digest that the voters have, and whether all have it, or whether none has
// anything but the one that is known.
func (im *image) agreement(voters []*node, known string, answers map[*node]string) (digest string, agreed bool) {
	digest, agreed = known, true
	for _, n := range voters {
		switch has, answered := answers[n]; {
		case !answered, has == "" && known == "":
			agreed = false
		case has == "" || has == digest:
		case digest == "":
			digest = has
		default:
			im.disagreement = &Disagreement{Nodes: [2]string{nameOfHolder(answers, digest), n.Name}, Digests: [2]string{digest, has}}
			return "", false
		}
	}
	return digest, agreed && digest != ""
}

// localAnswers are the digests that nodes have said or were told, empty for a node that has no image
// of that name.
func (im *image) localAnswers() map[*node]string {
	answers := make(map[*node]string, len(im.entries))
	for _, e := range im.entries {
		switch {
		case e.Wanted == nil || im.isForgotten(e.Entry):
		case e.Wanted.Digest != "":
			answers[e.node] = e.Wanted.Digest
		case e.asksLocally() && (e.presentDigest() != "" || e.Failed()):
			answers[e.node] = e.presentDigest()
		}
	}
	return answers
}

// isForgotten reports whether a node was told a digest that no prefetch knows any more, and cannot get it.
func (im *image) isForgotten(e Entry) bool {
	return im.digest == "" && e.Wanted != nil && e.Wanted.Digest != "" && e.Failed()
}

// nameOfHolder is the first node that has the digest.
func nameOfHolder(answers map[*node]string, digest string) (name string) {
	for n, has := range answers {
		if has == digest && (name == "" || n.Name < name) {
			name = n.Name
		}
	}
	return name
}

// keptQuestion is the next entry of a node that is to say what it has: the same, or that digest once it
// is known. A node that has something else waits for its turn at the mirror.
func (im *image) keptQuestion(p *placement) *v1alpha1.NodeImage {
	switch {
	case im.asked[p.node]:
		return p.requirements.applyTo(p.Wanted)
	case p.state == present && p.target() == im.digest:
		return p.requirements.newEntry(im.name, im.digest, v1alpha1.RegistryPolicyMirror)
	}
	return nil
}

// askNodes has each node say what it has under the name whose word counts and is not known.
func (im *image) askNodes() {
	for _, p := range im.placements {
		if im.asked[p.node] && (p.Wanted == nil && !p.removalPending() || im.isForgotten(p.Entry)) {
			p.next = p.requirements.newEntry(im.name, "", v1alpha1.RegistryPolicyLocal)
		}
	}
}

// answersFirst reports whether the node is to say what it has before it asks the registry for another
// prefetch: otherwise nobody would hear of it while the registry refuses.
func (im *image) answersFirst(p *placement) bool {
	return im.asked[p.node] && (p.Wanted == nil || p.asksLocally() && p.state == pulling)
}

// isOnlyLocal reports whether the image is local to the nodes for every prefetch that wants it. Then no
// registry is asked for its content either.
func (im *image) isOnlyLocal() bool {
	return len(im.prefetches) > 0 && !slices.ContainsFunc(im.prefetches, func(pf *prefetch) bool { return !pf.goesByNodes(im.name) })
}

// goesByNodes reports whether the nodes are asked what the tag of an image means.
func (pf *prefetch) goesByNodes(image string) bool {
	return pf.Refresh == "" && slices.Contains(pf.NodeLocal, image)
}
