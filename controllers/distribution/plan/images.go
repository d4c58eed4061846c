// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// listImages finds every image that some prefetch wants or some node's spec names.
func (pl *planner) listImages(memory Memory) {
	images := make(map[string]*image)
	get := func(name string) *image {
		im, ok := images[name]
		if !ok {
			im = &image{name: name, resolved: make(map[*prefetch]bool)}
			images[name] = im
			pl.images = append(pl.images, im)
		}
		return im
	}
	for _, pf := range pl.prefetches {
		for _, name := range pf.Images {
			im := get(name)
			im.prefetches = append(im.prefetches, pf)
		}
	}
	for _, n := range pl.nodes {
		for name, entry := range n.Entries {
			n.agentKnown = n.agentKnown || entry.Status != nil
			n.slotProgressAt = latest(n.slotProgressAt, pl.slotProgressAt(entry))
			if images[name] != nil || entry.Wanted != nil {
				im := get(name)
				im.entries = append(im.entries, nodeEntry{n, entry})
			}
		}
	}
	slices.SortFunc(pl.images, func(a, b *image) int { return strings.Compare(a.name, b.name) })
	for _, im := range pl.images {
		im.history = im.historyFrom(memory)
	}
}

// listPlacements lists, for each image, the nodes that it concerns, and how each gets on.
func (pl *planner) listPlacements() {
	for _, im := range pl.images {
		demanding := pl.collectDemand(im)
		found := im.entries
		all := make([]placement, 0, len(demanding)+len(found))
		im.placements = make([]*placement, 0, cap(all))
		for len(demanding) > 0 || len(found) > 0 {
			all = all[:len(all)+1]
			p := &all[len(all)-1]
			switch {
			case len(found) == 0 || len(demanding) > 0 && demanding[0].index < found[0].node.index:
				p.node, demanding = demanding[0], demanding[1:]
			default:
				p.node, p.Entry = found[0].node, found[0].Entry
				if len(demanding) > 0 && demanding[0] == p.node {
					demanding = demanding[1:]
				}
				found = found[1:]
			}
			pl.assess(im, p)
			im.placements = append(im.placements, p)
		}
		pl.groupByPlatform(im)
	}
}

// assess finds out what is wanted of a placement and how it gets on, and counts it in the totals
// that go over all images.
func (pl *planner) assess(im *image, p *placement) {
	p.requirements, p.desired = pl.demands[p.node.index].requirements, pl.demands[p.node.index].desired
	pl.demands[p.node.index] = nodeDemand{}
	pl.noteLeftOutSecrets(p.requirements)
	p.state = pl.pullStateOf(p)
	p.current = p.state != idle && (p.unanswered() || p.target() == im.digest)
	if p.state == pulling && !p.asksLocally() && !pl.unresponsive(p) { // a node that is asked what it has fetches nothing
		p.counted = true
		pl.pulls++
	}
	if p.state == present || p.isSeed() {
		p.node.imageCount++
	}
	if p.isSeed() && (p.state == pulling || p.state == present) {
		im.countSeed(p.node)
	}
	for _, pf := range im.prefetches {
		if p.isSeed() && p.state == pulling {
			pf.pullingImages[p.node.index]++
		}
		if p.state == present && p.Status.Source == v1alpha1.SourceUpstream {
			pf.arrivedAt[p.node.index] = latest(pf.arrivedAt[p.node.index], pl.orNow(p.ChangedAt))
		}
		if p.removalPending() {
			pf.leavingImages[p.node.index]++
		}
	}
}

// noteLeftOutSecrets tells the prefetches whose secrets found no place in a node's entry.
func (pl *planner) noteLeftOutSecrets(r *requirements) {
	if r == nil {
		return
	}
	for _, ref := range r.leftOut {
		if ref.secret.IsServiceAccount() {
			continue // it may well name no secrets
		}
		pf := pl.prefetches[ref.prefetchIndex]
		if pf.leftOutSecrets == nil {
			pf.leftOutSecrets = make(map[string]bool)
		}
		pf.leftOutSecrets[ref.secret.Name] = true
	}
}

// groupByPlatform groups the placements of an image, and counts in each group the holders and the
// nodes that may use the upstream already.
func (pl *planner) groupByPlatform(im *image) {
	groups := make(map[string]*platformGroup)
	for _, p := range im.placements {
		g, ok := groups[p.node.Platform]
		if !ok {
			g = &platformGroup{platform: p.node.Platform, seedsLeft: pl.limits.UpstreamPullers}
			groups[g.platform] = g
			im.groups = append(im.groups, g)
		}
		g.placements = append(g.placements, p)
		if p.isSeed() || im.mayStillPull(p) {
			g.seedsLeft--
		}
		if p.serves(im.digest) {
			pl.countHolder(g, p)
		}
	}
	slices.SortFunc(im.groups, func(a, b *platformGroup) int { return strings.Compare(a.platform, b.platform) })
}

func (pl *planner) countHolder(g *platformGroup, p *placement) {
	g.holders++
	if at := pl.orNow(p.ChangedAt); g.holders == 1 || at.Before(g.holdersSince) {
		g.holdersSince = at
	}
	switch p.Status.Source {
	case v1alpha1.SourceMirror:
		g.fromMirror = true
	case v1alpha1.SourceUpstream:
		g.fromUpstream++
	case v1alpha1.SourceLocal:
	}
}
