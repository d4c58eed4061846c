// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// promoteResolversAndSeeds promotes what each image lacks, image by image, because the limit of the
// cluster counts the pulls of all images. A resolver is the seed of its platform as well.
func (pl *planner) promoteResolversAndSeeds() {
	for _, im := range pl.images {
		im.askNodes()
		pl.ensureResolver(im)
		for _, g := range im.groups {
			pl.promoteSeeds(im, g)
		}
	}
}

// ensureResolver lets exactly one node ask the registry what a tag means while some prefetch needs
// to know.
func (pl *planner) ensureResolver(im *image) {
	var resolver *placement
	if len(im.openRequestIDs) > 0 && !im.hasOrphanedResolver() {
		if resolver = im.findResolver(); resolver == nil {
			resolver = pl.chooseResolver(im)
		}
		if resolver != nil {
			im.setRequestIDs(resolver)
		}
	}
	im.demoteSuperseded(resolver)
}

// hasOrphanedResolver reports whether a node that no prefetch wants any more may still be asking.
func (im *image) hasOrphanedResolver() bool {
	return slices.ContainsFunc(im.placements, func(p *placement) bool {
		return p.requirements == nil && p.awaitingAck() && p.unanswered()
	})
}

// findResolver is the seed that asks already, or any seed that can: then no other node has to use
// the upstream.
func (im *image) findResolver() *placement {
	var resolver *placement
	for _, p := range im.placements {
		able := p.isSeed() && p.requirements != nil && !p.losesEntry() && (p.awaitingAck() || p.state == pulling || p.state == present)
		if able && (resolver == nil || !resolver.unanswered() && p.unanswered()) {
			resolver = p
		}
	}
	return resolver
}

// chooseResolver promotes a node to be the new resolver, once the last one is demoted.
func (pl *planner) chooseResolver(im *image) *placement {
	var candidates, failing []*placement
	for _, p := range im.placements {
		if p.staysSeed() && p.requirements != nil {
			if pl.waitsForSibling(im, p) {
				return nil // what the tag means would be pulled elsewhere
			}
			failing = append(failing, p)
		}
		if p.available() && p.requirements.unresolved && !im.answersFirst(p) {
			candidates = append(candidates, p)
		}
	}
	for _, p := range pl.replaceSeeds(im, failing, candidates) {
		if g := im.groupOf(p); len(failing) == 0 && g.seedsLeft > 0 && pl.withinPullLimit(p) {
			pl.promote(im, g, p, "")
			return p
		}
	}
	return nil
}

func (im *image) groupOf(p *placement) *platformGroup {
	at := slices.IndexFunc(im.groups, func(g *platformGroup) bool { return g.platform == p.node.Platform })
	return im.groups[at]
}

// setRequestIDs has the resolver ask for all open request IDs, and no other node. Until the answer
// comes, the resolver keeps what it has or pulls for the prefetches that know the digest.
func (im *image) setRequestIDs(resolver *placement) {
	requestIDs := im.nextRequestIDs(resolver.Wanted)
	resolver.next = resolver.requirements.newEntry(im.name, resolver.lastDigest(), v1alpha1.RegistryPolicyDefault)
	resolver.next.Request = requestIDs
	for _, p := range im.placements {
		if p != resolver && p.next != nil && p.next.Request != "" && !p.awaitingAck() {
			p.next = p.requirements.applyTo(p.next)
			p.next.Request = ""
		}
	}
}

// demoteSuperseded demotes the seeds of an old digest, and those that ask a question which another
// node asks, or no prefetch.
func (im *image) demoteSuperseded(resolver *placement) {
	for _, p := range im.placements {
		if p == resolver || p.requirements == nil || p.awaitingAck() || !p.staysSeed() {
			continue
		}
		superseded := !p.current && im.digest != ""
		needless := p.unanswered() && (resolver != nil || len(im.openRequestIDs) == 0)
		if superseded || needless {
			im.demote(p)
		}
	}
}
