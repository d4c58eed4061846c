// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// entryChange is the entry that a node's spec shall have for an image; nil for none.
type entryChange struct {
	image string
	entry *v1alpha1.NodeImage
}

// buildStep turns the draft into what the controller is to do.
func (d *planner) buildStep() Step {
	for _, im := range d.images {
		for _, s := range im.placements {
			if !sameEntry(s.entry.Wanted, s.next) {
				s.node.changes = append(s.node.changes, entryChange{im.name, s.next})
			}
		}
	}
	step := Step{
		Sets:       make(map[string][]v1alpha1.NodeImage),
		Prefetches: make(map[string]Outcome, len(d.prefetches)),
		WakeAt:     d.wake,
		Memory:     d.nextMemory(),
	}
	for _, n := range d.nodes {
		if len(n.changes) > 0 {
			step.Sets[n.Name] = n.set()
		}
	}
	images := make(map[string]*image, len(d.images))
	for _, im := range d.images {
		im.withoutMirror = d.mirrorServedNobody(im)
		images[im.name] = im
	}
	for _, p := range d.prefetches {
		step.Prefetches[p.Key] = d.outcomeOf(p, images)
	}
	return step
}

// set is the node's whole list with the changes made.
func (n *node) set() []v1alpha1.NodeImage {
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

func sameEntry(a, b *v1alpha1.NodeImage) bool {
	if a == nil || b == nil || a == b {
		return a == b
	}
	return a.Digest == b.Digest && a.Request == b.Request && a.RegistryPolicy == b.RegistryPolicy &&
		a.Retention == b.Retention && equalInt32(a.ImageDownloadRetryLimit, b.ImageDownloadRetryLimit) &&
		slices.Equal(a.ImagePullSecrets, b.ImagePullSecrets)
}

func equalInt32(a, b *int32) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// outcomeOf tells what the plan means for one prefetch.
func (d *planner) outcomeOf(p *prefetch, images map[string]*image) Outcome {
	o := Outcome{
		Nodes:           p.targets.names,
		Silent:          p.targets.silentNames,
		Full:            p.targets.fullNames,
		MissingReplicas: p.missingReplicas,
		LeftOutSecrets:  slices.Sorted(maps.Keys(p.leftOutSecrets)),
		Digests:         make(map[string]Resolved, len(p.Images)),
	}
	for _, name := range p.Images {
		im := images[name]
		if im.resolved[p] && im.digest != "" {
			o.Digests[name] = Resolved{Digest: im.digest, For: p.Resolution}
		}
		if im.refused {
			o.Refused = append(o.Refused, name)
		}
		o.WithoutMirror = o.WithoutMirror || im.withoutMirror
	}
	slices.Sort(o.Refused)
	return o
}

// mirrorServedNobody says that nodes go upstream because the mirror has served nobody.
func (d *planner) mirrorServedNobody(im *image) bool {
	return slices.ContainsFunc(im.groups, func(g *platformGroup) bool {
		return g.fromMirror == 0 && (g.fromUpstream > d.limits.UpstreamPullers ||
			slices.ContainsFunc(g.placements, func(s *placement) bool { return d.failedDespiteHolders(g, s) }))
	})
}
