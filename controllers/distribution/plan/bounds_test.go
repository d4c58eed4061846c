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

// boundsViolation says which of the two bounds on pulls a plan has broken, given what it was
// made of. What was under way stays under way, also where others that left or stood
// still have made it too much; then nobody may be added.
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

// sighting is an entry as the plan saw it: whether its node pulls or may at any moment, and
// whether it takes room in its wave.
type sighting struct {
	v1alpha1.NodeImage
	pulls, busy bool
}

// placementsIn is how each image stands on each node.
func (c *fakeCluster) placementsIn(s State) *planner {
	pl := newPlanner(s, c.limits.orDefault())
	pl.selectNodes()
	pl.listImages(s.Memory)
	pl.resolveDigests()
	pl.listPlacements()
	pl.readKubeletImages()
	return pl
}

// fanoutViolation follows docs/design/0003: fanout for each node that holds the image, for
// the seed that is followed, and for the shares of those who pull, which come to three
// times as much at the most. Those whose kubelet lists the digest are let in beside.
func (c *fakeCluster) fanoutViolation(im *image, g *platformGroup, was map[string]sighting) (added bool, over string) {
	sources, shares, pulls, queued := float64(g.holders), 0.0, 0, false
	for _, p := range g.placements {
		old, had := was[p.node.Name+" "+im.name]
		if had && p.Wanted == nil && p.reportsPresent(im.digest) {
			sources++ // it held the image when the plan was made that lets go of it
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
	starved, fed := make(map[string]bool), make(map[string]bool) // nodes
	var queued []string
	for _, im := range pl.images {
		for _, g := range im.groups {
			for _, p := range g.placements {
				if p.Wanted == nil {
					continue
				}
				key, status := p.node.Name+" "+im.name, p.Status
				pulls := p.state == pulling && !pl.unresponsive(p)
				vain := g.holders > 0 && !p.isSeed() && (p.state == stalled || p.state == failed || pl.starves(g, p))
				was[key] = sighting{*p.Wanted, pulls, pulls && !vain}
				starved[p.node.Name] = starved[p.node.Name] || vain
				fed[p.node.Name] = fed[p.node.Name] || !vain && p.state == pulling && status != nil && status.State == v1alpha1.ImagePulling
				if status != nil && status.Attempts == 0 {
					queued = append(queued, key)
				}
			}
		}
	}
	for _, key := range queued {
		if node, _, _ := strings.Cut(key, " "); starved[node] && !fed[node] {
			was[key] = sighting{was[key].NodeImage, was[key].pulls, false}
		}
	}
	return was
}

// starves says that a node has failed and got nothing since, or got nothing for ten
// seconds, though others hold the image.
func (pl *planner) starves(g *platformGroup, p *placement) bool {
	status := p.Status
	if p.state != pulling || !p.node.Acknowledged || status == nil || status.Attempts == 0 {
		return false
	}
	long := pl.now.Sub(p.ProgressAt) >= 10*time.Second && pl.now.Sub(g.holdersSince) >= 10*time.Second
	return (status.Reason != "" || long) && (status.State != v1alpha1.ImagePulling || status.PulledBytes == 0)
}

// TestMemoryDoesNotGrowWithTheSquare counts what a plan allocates, in pieces and in
// bytes: four times the nodes take about four times as much, and not sixteen times, and
// so do four times the prefetches.
func TestMemoryDoesNotGrowWithTheSquare(t *testing.T) {
	const few, many = 500, 2000
	for _, c := range []struct {
		stage        string
		small, large State
	}{
		{"begin", distributing(few, 5, 1, 0), distributing(many, 5, 1, 0)},
		{"middle", distributing(few, 5, 1, 0.5), distributing(many, 5, 1, 0.5)},
		{"end", distributing(few, 5, 1, 1), distributing(many, 5, 1, 1)},
		{"many prefetches", distributing(few, 5, 20, 0.5), distributing(many, 5, 20, 0.5)},
		{"replicas", onHalf(distributing(few, 5, 20, 0.5)), onHalf(distributing(many, 5, 20, 0.5))},
		{"more images than there is room for", exceedingCapacity(60), exceedingCapacity(240)},
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
