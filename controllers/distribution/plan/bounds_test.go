// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// boundsViolation describes how the last plan, which was made of the given state, broke the fanout
// of a wave or the limit of the cluster; it is empty if the plan kept both. Pulls that run go on,
// even where nodes that left or stalled have made them too many; then the plan may add none.
func (c *fakeCluster) boundsViolation(seen State) string {
	before, after := c.placementsIn(seen), c.placementsIn(c.state())
	was := before.sightings()
	added, pulls := false, 0
	for _, im := range after.images {
		for _, g := range im.groups {
			new, over := c.fanoutViolation(im, g, was)
			if over != "" {
				return over
			}
			added = added || new
		}
		for _, p := range im.placements {
			if p.Wanted == nil || p.state != pulling {
				continue
			}
			old, had := was[p.node.Name+" "+im.name]
			if old.pulls || !had || old.RegistryPolicy == v1alpha1.RegistryPolicyMirror && p.isSeed() {
				pulls++
			}
		}
	}
	if limit := c.limits.MaxConcurrentPulls; added && limit > 0 && pulls > limit {
		return fmt.Sprintf("%d pulls are under way or may be at any moment, of %d", pulls, limit)
	}
	return ""
}

// sighting is an entry as the plan saw it: pulls says that its node pulls or may begin at any
// moment, busy that it takes an opening of its wave.
type sighting struct {
	v1alpha1.NodeImage
	pulls, busy bool
}

// placementsIn lists the placements of a state.
func (c *fakeCluster) placementsIn(s State) *planner {
	pl := newPlanner(s, c.limits.orDefault())
	pl.selectNodes()
	pl.listImages(s.Memory)
	pl.resolveDigests()
	pl.listPlacements()
	pl.readKubeletImages()
	return pl
}

// fanoutViolation follows docs/design/0003: a wave has Fanout openings for each node that has the
// image, for the seed that is followed, and for the shares of the nodes that pull, which count for
// at most three times as much. Nodes whose kubelet lists the digest need no opening.
func (c *fakeCluster) fanoutViolation(im *image, g *platformGroup, was map[string]sighting) (added bool, over string) {
	sources, shares, pulls, queued := float64(g.holders), 0.0, 0, false
	for _, p := range g.placements {
		old, had := was[p.node.Name+" "+im.name]
		if had && p.Wanted == nil && p.reportsPresent(im.digest) {
			sources++ // it had the image when the plan was made that removes the entry
		}
		if p.Wanted == nil || !p.current || p.state != pulling {
			continue
		}
		fresh := !had || old.Digest != p.Wanted.Digest && old.RegistryPolicy == v1alpha1.RegistryPolicyMirror
		added = added || fresh
		switch {
		case p.isSeed():
			if status := p.Status; c.limits.FollowSeed && status != nil && status.State == v1alpha1.ImagePulling && status.SizeBytes > 0 {
				sources++
			}
		case fresh && p.reportsPresent(im.digest):
		case fresh && p.listing == digestListed:
		default:
			queued = queued || fresh
			if fresh || old.busy {
				pulls++
			}
			if status := p.Status; c.limits.FollowSeed && old.pulls && status != nil && status.Digest == im.digest && status.SizeBytes > 0 {
				shares += min(float64(status.PulledBytes)/float64(status.SizeBytes), 1)
			}
		}
	}
	if bound := float64(c.limits.Fanout) * (sources + min(shares, 3*sources)); queued && float64(pulls) > bound {
		return added, fmt.Sprintf("%d pull %s on %s, of %v", pulls, im.name, g.platform, bound)
	}
	return added, ""
}

// sightings is every entry as the plan saw it, by node and image.
func (pl *planner) sightings() map[string]sighting {
	was := make(map[string]sighting)
	starved, progressing := make(map[string]bool), make(map[string]bool) // nodes
	var queued []string
	for _, im := range pl.images {
		for _, g := range im.groups {
			for _, p := range g.placements {
				if p.Wanted == nil {
					continue
				}
				key, status := p.node.Name+" "+im.name, p.Status
				pulls := p.state == pulling && !pl.unresponsive(p)
				getsNothing := g.holders > 0 && !p.isSeed() && (p.state == stalled || p.state == failed || pl.receivesNothing(g, p))
				was[key] = sighting{*p.Wanted, pulls, pulls && !getsNothing}
				starved[p.node.Name] = starved[p.node.Name] || getsNothing
				gets := !getsNothing && p.state == pulling && status != nil && status.State == v1alpha1.ImagePulling
				progressing[p.node.Name] = progressing[p.node.Name] || gets
				if status != nil && status.Attempts == 0 {
					queued = append(queued, key)
				}
			}
		}
	}
	for _, key := range queued {
		if node, _, _ := strings.Cut(key, " "); starved[node] && !progressing[node] {
			was[key] = sighting{was[key].NodeImage, was[key].pulls, false}
		}
	}
	return was
}

// receivesNothing reports whether a node has failed and received nothing since, or has received
// nothing for ten seconds, although others have the image.
func (pl *planner) receivesNothing(g *platformGroup, p *placement) bool {
	status := p.Status
	if p.state != pulling || !p.node.Acknowledged || status == nil || status.Attempts == 0 {
		return false
	}
	long := pl.now.Sub(p.ProgressAt) >= 10*time.Second && pl.now.Sub(g.holdersSince) >= 10*time.Second
	return (status.Reason != "" || long) && (status.State != v1alpha1.ImagePulling || status.PulledBytes == 0)
}

// TestMemoryGrowsLinearly counts the allocations of a plan and their bytes: four times the nodes
// take about four times as much, not sixteen times, and so do four times the prefetches.
func TestMemoryGrowsLinearly(t *testing.T) {
	const few, many = 500, 2000
	for _, c := range []struct {
		stage        string
		small, large State
	}{
		{"begin", distributing(few, 5, 1, 0), distributing(many, 5, 1, 0)},
		{"middle", distributing(few, 5, 1, 0.5), distributing(many, 5, 1, 0.5)},
		{"end", distributing(few, 5, 1, 1), distributing(many, 5, 1, 1)},
		{"many prefetches", distributing(few, 5, 20, 0.5), distributing(many, 5, 20, 0.5)},
		{"replicas", withReplicasOnHalf(distributing(few, 5, 20, 0.5)), withReplicasOnHalf(distributing(many, 5, 20, 0.5))},
		{"more images than the sets have room for", exceedingCapacity(60), exceedingCapacity(240)},
	} {
		t.Run(c.stage, func(t *testing.T) {
			memory := func(state State) (pieces, bytes float64) {
				limits := DefaultLimits()
				Next(state, limits)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				Next(state, limits)
				runtime.ReadMemStats(&after)
				return float64(after.Mallocs - before.Mallocs), float64(after.TotalAlloc - before.TotalAlloc)
			}
			pieces, bytes := memory(c.small)
			p, b := memory(c.large)
			if p > 5*pieces || b > 5*bytes {
				t.Errorf("%.0f allocations of %.0f bytes became %.0f of %.0f", pieces, bytes, p, b)
			}
		})
	}
}
