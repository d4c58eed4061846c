// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// ensureResolver sees to it that exactly one node asks the registry what a tag means
// while some prefetch needs to know. It becomes the seed of its platform thereby.
func (d *planner) ensureResolver(im *image) {
	var resolver *placement
	if len(im.openRequestIDs) > 0 && !im.hasOrphanedResolver() {
		if resolver = im.resolver(); resolver == nil {
			resolver = d.chooseResolver(im)
		}
		if resolver != nil {
			im.setRequest(resolver)
		}
	}
	im.demoteSuperseded(resolver)
}

// resolver is the seed that asks already, or else one that can ask as well: no other
// node has to be let upstream then.
func (im *image) resolver() *placement {
	var resolver *placement
	for _, s := range im.placements {
		able := s.isSeed() && s.requirements != nil && !s.withdrawn() && (s.awaitingAck() || s.state == pulling || s.state == present)
		if able && (resolver == nil || !unanswered(resolver.entry) && unanswered(s.entry)) {
			resolver = s
		}
	}
	return resolver
}

// hasOrphanedResolver says that a node which nothing wants any more may still be asking.
func (im *image) hasOrphanedResolver() bool {
	return slices.ContainsFunc(im.placements, func(s *placement) bool {
		return s.requirements == nil && s.awaitingAck() && unanswered(s.entry)
	})
}

// chooseResolver chooses a new resolver, once the last one is relieved.
func (d *planner) chooseResolver(im *image) *placement {
	var candidates, failing []*placement
	for _, s := range im.placements {
		if s.staysSeed() && s.requirements != nil {
			failing = append(failing, s)
		}
		if s.available() && s.requirements.unresolved {
			candidates = append(candidates, s)
		}
	}
	for _, s := range d.replaceSeeds(im, failing, candidates) {
		if g := im.groupOf(s); len(failing) == 0 && g.seedsLeft > 0 && d.withinPullLimit(s) {
			d.promote(im, g, s, "")
			return s
		}
	}
	return nil
}

// setRequest has the resolver ask for all open marks, and nobody else. What it has or is bringing
// for those who have been told, it keeps until the new answer is there.
func (im *image) setRequest(resolver *placement) {
	request := im.nextRequest(resolver.entry.Wanted)
	resolver.next = resolver.requirements.newEntry(im.name, lastDigest(resolver.entry), v1alpha1.RegistryPolicyDefault)
	resolver.next.Request = request
	for _, s := range im.placements {
		if s != resolver && s.next != nil && s.next.Request != "" && !s.awaitingAck() {
			s.next = s.requirements.applyTo(s.next)
			s.next.Request = ""
		}
	}
}

// demoteSuperseded relieves the seeds of what nobody asks for any more.
func (im *image) demoteSuperseded(resolver *placement) {
	for _, s := range im.placements {
		if s == resolver || s.requirements == nil || s.awaitingAck() || !s.staysSeed() {
			continue
		}
		superseded := !s.current && im.digest != ""
		unasked := unanswered(s.entry) && (resolver != nil || len(im.openRequestIDs) == 0)
		if superseded || unasked {
			im.demote(s)
		}
	}
}

// promoteSeeds lets nodes of one platform use the upstream: as seeds while nobody holds
// the image, and after that in place of a mirror that does not have it.
func (d *planner) promoteSeeds(im *image, g *platformGroup) {
	if im.digest == "" {
		return
	}
	want := d.limits.UpstreamPullers
	var candidates, failing []*placement
	for _, s := range g.placements {
		switch {
		case s.staysSeed() && (s.awaitingAck() || s.state == pulling || s.state == present): // and is to ask for the tag
			want--
		case s.staysSeed() && !unanswered(s.entry):
			failing = append(failing, s)
		}
		if s.requirements != nil && d.mayUseUpstream(g, s) {
			candidates = append(candidates, s)
		}
	}
	if g.holders > 0 {
		for _, s := range failing {
			d.recordFailure(im, s)
			im.demote(s) // to try the mirror again
		}
		failing = nil
	}
	if want <= 0 {
		return
	}
	for _, s := range d.replaceSeeds(im, failing, candidates) {
		if want > 0 && g.seedsLeft > 0 && !s.isSeed() && d.withinPullLimit(s) {
			d.promote(im, g, s, im.digest)
			want--
		}
	}
}

// mayUseUpstream says that a node is one of those who may get an image from the upstream.
func (d *planner) mayUseUpstream(g *platformGroup, s *placement) bool {
	switch {
	case !s.admissible() || s.current && s.state == present:
		return false
	case g.holders == 0:
		return true
	default:
		return d.limits.MirrorFallback == FallbackUpstream && d.failedDespiteHolders(g, s)
	}
}

// failedDespiteHolders says that the mirror failed a node although somebody held the image.
func (d *planner) failedDespiteHolders(g *platformGroup, s *placement) bool {
	return s.mirrorFailed() && g.holders > 0 && !d.orNow(s.entry.ChangedAt).Before(g.holdersSince)
}

// mirrorFailed says that a node tried the mirror in vain until its retries ran out.
func (s *placement) mirrorFailed() bool {
	return s.current && s.state == failed && s.entry.FailedOnMirror()
}

// replaceSeeds relieves those who fail as soon as somebody else, or they themselves after
// a rest, can take over; and returns who can, the best first. Until then they stay, so
// that everybody sees why nothing moves.
func (d *planner) replaceSeeds(im *image, failing, candidates []*placement) []*placement {
	for _, s := range failing {
		d.recordFailure(im, s)
	}
	line := d.rankSeeds(im, candidates)
	if len(line) > 0 {
		for _, s := range failing {
			im.demote(s)
		}
	}
	return line
}

// demote makes a seed an ordinary node again. What it holds stays pinned, and the
// request stays with it, for that tells what its agent may be doing until it has heard.
func (im *image) demote(s *placement) {
	s.demoted = true
	s.next = nil
	if digest := presentDigest(s.entry); digest != "" {
		s.next = s.requirements.newEntry(im.name, digest, v1alpha1.RegistryPolicyMirror)
		s.next.Request = s.entry.Wanted.Request
	}
}

// promote makes a node a seed.
func (d *planner) promote(im *image, g *platformGroup, s *placement, digest string) {
	s.next = s.requirements.newEntry(im.name, digest, v1alpha1.RegistryPolicyDefault)
	g.seedsLeft--
	if !s.counted {
		d.runningPulls++
	}
	s.node.imageCount++
	im.countSeed(s.node)
}

// withinPullLimit says that one more pull stays within the limit of the cluster.
func (d *planner) withinPullLimit(s *placement) bool {
	return s.counted || d.limits.MaxConcurrentPulls <= 0 || d.runningPulls < d.limits.MaxConcurrentPulls
}

// staysSeed says that a seat is a seed and stays one.
func (s *placement) staysSeed() bool {
	return s.isSeed() && s.next != nil && s.next.RegistryPolicy == v1alpha1.RegistryPolicyDefault
}

func (im *image) groupOf(s *placement) *platformGroup {
	at := slices.IndexFunc(im.groups, func(g *platformGroup) bool { return g.platform == s.node.Platform })
	return im.groups[at]
}
