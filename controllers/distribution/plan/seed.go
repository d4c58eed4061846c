// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// promoteSeeds lets nodes of one platform use the upstream: as seeds while no node has the image,
// and after that in place of a mirror that does not serve them.
func (pl *planner) promoteSeeds(im *image, g *platformGroup) {
	if im.digest == "" {
		return
	}
	missing := pl.limits.UpstreamPullers
	var candidates, failing []*placement
	for _, p := range g.placements {
		switch {
		case p.staysSeed() && (p.awaitingAck() || p.state == pulling || p.state == present):
			missing-- // one that is present is to ask for the tag
		case p.staysSeed() && !p.unanswered() && g.holders == 0 && pl.waitsForSibling(im, p):
			missing--
		case p.staysSeed() && !p.unanswered():
			failing = append(failing, p)
		}
		if p.requirements != nil && !im.isOnlyLocal() && pl.mayUseUpstream(g, p) && (g.holders > 0 || !im.siblingLeaves(p)) {
			candidates = append(candidates, p)
		}
	}
	if g.holders > 0 {
		for _, p := range failing {
			pl.recordFailure(im, p)
			im.demote(p) // to try the mirror again
		}
		failing = nil
	}
	if missing <= 0 {
		return
	}
	for _, p := range pl.replaceSeeds(im, failing, candidates) {
		if missing > 0 && g.seedsLeft > 0 && !p.isSeed() && pl.withinPullLimit(p) {
			pl.promote(im, g, p, im.digest)
			missing--
		}
	}
}

// mayUseUpstream reports whether a node is a candidate to get the image from the upstream.
func (pl *planner) mayUseUpstream(g *platformGroup, p *placement) bool {
	switch {
	case !p.admissible() || p.current && p.state == present:
		return false
	case g.holders == 0:
		return true
	default:
		return pl.limits.MirrorFallback == FallbackUpstream && pl.failedDespiteHolders(g, p)
	}
}

// replaceSeeds returns the nodes that can take over from failing seeds, the best first: others, or
// the failing ones after their backoff. It demotes the failing seeds if there are any such nodes.
// Until then they stay, so that their entries show why nothing moves.
func (pl *planner) replaceSeeds(im *image, failing, candidates []*placement) []*placement {
	for _, p := range failing {
		pl.recordFailure(im, p)
	}
	ranked := pl.rankSeeds(im, candidates)
	if len(ranked) > 0 {
		for _, p := range failing {
			im.demote(p)
		}
	}
	return ranked
}

// waitsForSibling reports whether a failing seed is not replaced yet, because the node still pulls
// another image of the same prefetch. Images of one prefetch often share layers: they move
// together once none of them gets on, or this one moves alone once the others are there and mirrors
// find what they share. A registry in trouble refuses what it has: a refused image waits until
// the node may ask again.
func (pl *planner) waitsForSibling(im *image, p *placement) bool {
	patience := siblingFactor * pl.limits.SeedTimeout
	var since time.Time
	switch {
	case p.state == stalled:
		since = pl.stallsAt(p)
	case p.state == failed && v1alpha1.IsRefusal(p.Status.Reason):
		since, patience = pl.orNow(p.ChangedAt), refusalBackoff
	case p.state == failed:
		since = pl.orNow(p.ChangedAt)
	default:
		return false
	}
	until := since.Add(patience)
	if !slices.ContainsFunc(im.prefetches, func(pf *prefetch) bool { return pf.pullingImages[p.node.index] > 0 }) {
		until = time.Time{}
	}
	for _, pf := range im.prefetches {
		if at, ok := pf.arrivedAt[p.node.index]; ok {
			until = latest(until, at.Add(findTimeout))
		}
	}
	if !pl.now.Before(until) {
		return false
	}
	pl.wakeAt(until)
	return true
}

// siblingLeaves reports whether the node's agent has yet to see that the entry of another image of the
// same prefetch is gone. Until then the node cannot be the seed of that one, and two images that are
// to move together would part.
func (im *image) siblingLeaves(p *placement) bool {
	return slices.ContainsFunc(im.prefetches, func(pf *prefetch) bool { return pf.leavingImages[p.node.index] > 0 })
}

// promote makes a node a seed.
func (pl *planner) promote(im *image, g *platformGroup, p *placement, digest string) {
	p.next = p.requirements.newEntry(im.name, digest, v1alpha1.RegistryPolicyDefault)
	g.seedsLeft--
	if !p.counted {
		pl.pulls++
	}
	p.node.imageCount++
	im.countSeed(p.node)
}
