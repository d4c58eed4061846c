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

// overBounds says which of the two bounds on pulls a plan has broken, given what it was
// made of. What was under way stays under way, also where others that left or stood
// still have made it too much; then nobody may be added.
func (w *world) overBounds(seen State) string {
	before, after := w.seated(seen), w.seated(w.state())
	was := before.sights()
	added, pulls := false, 0
	for _, im := range after.images {
		for _, g := range im.groups {
			new, over := w.overFanout(im, g, was)
			if over != "" {
				return over
			}
			added = added || new
		}
		for _, s := range im.placements {
			if s.Wanted == nil || s.state != pulling {
				continue
			}
			old, had := was[s.node.Name+" "+im.name]
			if old.pulls || !had || old.RegistryPolicy == v1alpha1.RegistryPolicyMirror && s.isSeed() {
				pulls++
			}
		}
	}
	if limit := w.limits.MaxConcurrentPulls; added && limit > 0 && pulls > limit {
		return fmt.Sprintf("%d pulls are under way or may be at any moment, of %d", pulls, limit)
	}
	return ""
}

// sight is an entry as the plan saw it: whether its node pulls or may at any moment, and
// whether it takes room in its wave.
type sight struct {
	v1alpha1.NodeImage
	pulls, busy bool
}

// seated is how each image stands on each node.
func (w *world) seated(s State) *planner {
	d := newPlanner(s, w.limits.orDefault())
	d.selectNodes()
	d.listImages(s.Memory)
	d.resolveDigests()
	d.listPlacements()
	d.readKubeletImages()
	return d
}

// overFanout follows docs/design/0003: fanout for each node that holds the image, for
// the seed that is followed, and for the shares of those who pull, which come to three
// times as much at the most. Those whose kubelet lists the digest are let in beside.
func (w *world) overFanout(im *image, g *platformGroup, was map[string]sight) (added bool, over string) {
	sources, shares, pulls, queued := float64(g.holders), 0.0, 0, false
	for _, s := range g.placements {
		old, had := was[s.node.Name+" "+im.name]
		if had && s.Wanted == nil && s.reportsPresent(im.digest) {
			sources++ // it held the image when the plan was made that lets go of it
		}
		if s.Wanted == nil || !s.current || s.state != pulling {
			continue
		}
		fresh := !had || old.Digest != s.Wanted.Digest && old.RegistryPolicy == v1alpha1.RegistryPolicyMirror
		added = added || fresh
		switch {
		case s.isSeed():
			if status := s.Status; w.limits.FollowSeed && status != nil && status.State == v1alpha1.ImagePulling && status.SizeBytes > 0 {
				sources++
			}
		case fresh && s.reportsPresent(im.digest):
		case fresh && s.listing == digestListed:
		default:
			queued = queued || fresh
			if fresh || old.busy {
				pulls++
			}
			if status := s.Status; w.limits.FollowSeed && old.pulls && status != nil && status.Digest == im.digest && status.SizeBytes > 0 {
				shares += min(float64(status.PulledBytes)/float64(status.SizeBytes), 1)
			}
		}
	}
	if bound := float64(w.limits.Fanout) * (sources + min(shares, 3*sources)); queued && float64(pulls) > bound {
		return added, fmt.Sprintf("%d pull %s on %s, of %v", pulls, im.name, g.platform, bound)
	}
	return added, ""
}

// sights is every entry as the plan saw it, by node and image.
func (d *planner) sights() map[string]sight {
	was := make(map[string]sight)
	starved, fed := make(map[string]bool), make(map[string]bool) // nodes
	var queued []string
	for _, im := range d.images {
		for _, g := range im.groups {
			for _, s := range g.placements {
				if s.Wanted == nil {
					continue
				}
				key, status := s.node.Name+" "+im.name, s.Status
				pulls := s.state == pulling && !d.unresponsive(s)
				vain := g.holders > 0 && !s.isSeed() && (s.state == stalled || s.state == failed || d.starves(g, s))
				was[key] = sight{*s.Wanted, pulls, pulls && !vain}
				starved[s.node.Name] = starved[s.node.Name] || vain
				fed[s.node.Name] = fed[s.node.Name] || !vain && s.state == pulling && status != nil && status.State == v1alpha1.ImagePulling
				if status != nil && status.Attempts == 0 {
					queued = append(queued, key)
				}
			}
		}
	}
	for _, key := range queued {
		if node, _, _ := strings.Cut(key, " "); starved[node] && !fed[node] {
			was[key] = sight{was[key].NodeImage, was[key].pulls, false}
		}
	}
	return was
}

// starves says that a node has failed and got nothing since, or got nothing for ten
// seconds, though others hold the image.
func (d *planner) starves(g *platformGroup, s *placement) bool {
	status := s.Status
	if s.state != pulling || !s.node.Acknowledged || status == nil || status.Attempts == 0 {
		return false
	}
	long := d.now.Sub(s.ProgressAt) >= 10*time.Second && d.now.Sub(g.holdersSince) >= 10*time.Second
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
		{"more images than there is room for", crowding(60), crowding(240)},
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
