// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// admitWaves lets as many nodes pull from the mirror as holders can serve. The images take turns,
// so that a large prefetch does not keep a small one waiting.
func (pl *planner) admitWaves() {
	var waves []*wave
	for _, im := range pl.images {
		for _, g := range im.groups {
			if im.digest != "" {
				waves = append(waves, pl.newWave(im, g))
			}
		}
	}
	for len(waves) > 0 {
		going := waves[:0]
		for _, w := range waves {
			switch {
			case len(w.listed) > 0 && pl.withinPullLimit(w.listed[0]):
				pl.admit(w.image, w.listed[0])
				w.listed = w.listed[1:]
			case len(w.queue) > 0 && w.openings > 0 && pl.withinPullLimit(w.queue[0]):
				pl.admit(w.image, w.queue[0])
				w.queue = w.queue[1:]
				w.openings--
			default:
				continue
			}
			going = append(going, w)
		}
		waves = going
	}
}

func (pl *planner) admit(im *image, p *placement) {
	p.next = p.requirements.newEntry(im.name, im.digest, v1alpha1.RegistryPolicyMirror)
	if !p.counted {
		pl.pulls++
	}
}

// newWave finds the nodes that wait, and how many of them can be served. A node that failed,
// stalled or is lost takes no opening.
func (pl *planner) newWave(im *image, g *platformGroup) *wave {
	sources, shares, busy := float64(g.holders), 0.0, 0
	isLost := g.holders == 0 && im.isOnlyLocal()
	if isLost {
		sources = 1 // some node may have it without being asked yet, and nothing else can bring it
	}
	var listed []*placement
	var queues [queueClasses][]*placement
	for _, p := range g.placements {
		switch {
		case p.current && p.staysSeed():
			if pl.limits.FollowSeed && p.state == pulling && p.followable(im.digest) {
				sources++
			}
		case p.next != nil && p.next.RegistryPolicy == v1alpha1.RegistryPolicyDefault:
			// It becomes a seed, or is one of another digest.
		case p.mirrorFailed() && !isLost && !pl.failedDespiteHolders(g, p):
			// No node could serve it: the entry goes, and comes again with all tries unused.
			p.next = nil
		case p.current && !p.demoted:
			if p.counted {
				if !p.starved && !(p.queued() && p.node.allStarved()) {
					busy++
				}
				if pl.limits.FollowSeed {
					shares += p.share(im.digest)
				}
			}
		case p.requirements == nil || !p.admissible():
		case p.demoted && p.reportsPresent(im.digest):
			// demote has kept its entry.
		case p.reportsPresent(im.digest):
			// There is nothing to pull, so it takes no opening.
			p.next = p.requirements.newEntry(im.name, im.digest, v1alpha1.RegistryPolicyMirror)
		case p.listing == digestListed:
			listed = append(listed, p)
		default:
			class := p.class()
			queues[class] = append(queues[class], p)
		}
	}
	openings := int(float64(min(pl.limits.Fanout, len(g.placements)))*(sources+min(shares, maxPartialWeight*sources))) - busy
	if g.starved > 0 && openings > 0 {
		for _, queue := range queues {
			im.shuffle(queue)
		}
	}
	return &wave{im, openings, slices.Concat(queues[:]...), listed}
}

// class is the part of the queue in which the node waits.
func (p *placement) class() queueClass {
	switch {
	case p.node.allStarved():
		return classStarved
	case p.listing == nameListed:
		return classListed
	case p.node.agentKnown:
		return classKnown
	default:
		return classUnknown
	}
}

// shuffle draws the order of a queue, once some node has got nothing from the mirror: nodes with
// similar names are often close in the network as well, and the nodes behind them must not wait
// until each of them has been tried.
func (im *image) shuffle(queue []*placement) {
	draws := make(map[*placement]uint64, len(queue))
	for _, p := range queue {
		draws[p] = stableHash(p.node.Name, im.name) // what comes first is mixed best
	}
	slices.SortFunc(queue, func(a, b *placement) int {
		return cmp.Or(cmp.Compare(draws[a], draws[b]), cmp.Compare(a.node.index, b.node.index))
	})
}
