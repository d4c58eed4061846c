// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// buildStep turns the placements' next entries into what the controller is to do.
func (pl *planner) buildStep() Step {
	for _, im := range pl.images {
		for _, p := range im.placements {
			if !sameEntry(p.Wanted, p.next) {
				p.node.changes = append(p.node.changes, entryChange{im.name, pl.withJoinedAt(im, p)})
			}
		}
	}
	step := Step{
		Sets:       make(map[string][]v1alpha1.NodeImage),
		Prefetches: make(map[string]Outcome, len(pl.prefetches)),
		WakeAt:     pl.wake,
		Joined:     pl.joined,
		Memory:     pl.nextMemory(),
	}
	for _, n := range pl.nodes {
		if len(n.changes) > 0 {
			step.Sets[n.Name] = n.changedSet()
		}
	}
	images := make(map[string]*image, len(pl.images))
	for _, im := range pl.images {
		im.withoutMirror = pl.mirrorServedNobody(im)
		images[im.name] = im
	}
	for _, pf := range pl.prefetches {
		step.Prefetches[pf.Key] = pf.outcome(images)
	}
	return step
}

// withJoinedAt is the next entry of a placement, with the time at which its node joined.
func (pl *planner) withJoinedAt(im *image, p *placement) *v1alpha1.NodeImage {
	if p.next == nil {
		return nil
	}
	entry := *p.next
	entry.JoinedAt = pl.joinedAt(p.node.Name, im.name)
	return &entry
}

// changedSet is the node's whole list with the changes made.
func (n *node) changedSet() []v1alpha1.NodeImage {
	set := make([]v1alpha1.NodeImage, 0, len(n.Entries)+len(n.changes))
	changed := make(map[string]bool, len(n.changes))
	for _, c := range n.changes {
		changed[c.image] = true
		if c.entry != nil {
			set = append(set, *c.entry)
		}
	}
	for name, entry := range n.Entries {
		if entry.Wanted != nil && !changed[name] {
			set = append(set, *entry.Wanted)
		}
	}
	slices.SortFunc(set, func(a, b v1alpha1.NodeImage) int { return strings.Compare(a.Name, b.Name) })
	return set
}

// outcome is what the plan means for one prefetch.
func (pf *prefetch) outcome(images map[string]*image) Outcome {
	o := Outcome{
		Nodes:           pf.targets.names,
		Uncovered:       pf.targets.uncoveredNames,
		Silent:          pf.targets.silentNames,
		Full:            pf.targets.fullNames,
		MissingReplicas: pf.missingReplicas,
		LeftOutSecrets:  slices.Sorted(maps.Keys(pf.leftOutSecrets)),
		Digests:         make(map[string]Resolved, len(pf.Images)),
	}
	for _, name := range pf.Images {
		im := images[name]
		if im.resolved[pf] && im.digest != "" {
			o.Digests[name] = Resolved{Digest: im.digest, Refresh: pf.Refresh}
		}
		if slices.Contains(im.asking, pf) {
			if o.Undecided == nil {
				o.Undecided = make(map[string]*Disagreement)
			}
			o.Undecided[name] = im.disagreement
		}
		if len(im.refusedPlatforms) > 0 {
			if o.Refused == nil {
				o.Refused = make(map[string][]string)
			}
			o.Refused[name] = slices.Sorted(maps.Keys(im.refusedPlatforms))
		}
		o.WithoutMirror = o.WithoutMirror || im.withoutMirror
	}
	return o
}

// mirrorServedNobody reports whether nodes use the upstream because the mirror has served none.
func (pl *planner) mirrorServedNobody(im *image) bool {
	return slices.ContainsFunc(im.groups, func(g *platformGroup) bool {
		return !g.fromMirror && (g.fromUpstream > pl.limits.UpstreamPullers ||
			slices.ContainsFunc(g.placements, func(p *placement) bool { return pl.failedDespiteHolders(g, p) }))
	})
}
