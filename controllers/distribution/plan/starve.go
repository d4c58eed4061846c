// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// findStarved finds the placements that get nothing from the mirror.
func (pl *planner) findStarved() {
	for _, im := range pl.images {
		for _, g := range im.groups {
			for _, p := range g.placements {
				if p.starved = pl.isStarved(g, p); p.starved {
					g.starved++
					p.node.starvedImages++
				} else if p.state == pulling && p.isPulling() {
					p.node.progressingImages++
				}
			}
		}
	}
}

// isStarved reports whether a node gets nothing although others have the image: its agent does not
// answer; or it failed and has received nothing since, though it tries again; or it has asked for
// serveTimeout. It puts no load on the holders. If it still asks or tries again, it counts for the
// limit of the cluster, because the image may come before the agent reports it. While no node has
// the image, followers fail because they wait for the seed, and keep their openings.
func (pl *planner) isStarved(g *platformGroup, p *placement) bool {
	switch {
	case g.holders == 0 || !p.current || p.isSeed() || p.state == present || p.state == lost:
		return false
	case p.state != pulling || pl.unresponsive(p):
		return true
	case !p.node.Acknowledged || p.Status == nil || p.queued():
		return false
	case p.Status.State == v1alpha1.ImagePulling && p.Status.PulledBytes > 0:
		return false
	case p.Status.Reason != "":
		return true
	}
	until := latest(pl.orNow(p.ProgressAt), g.holdersSince).Add(serveTimeout)
	pl.wakeAt(until)
	return !pl.now.Before(until)
}

// allStarved reports whether nothing of what a node pulls comes, so that an image which waits for
// one of its agent's slots gets nothing either.
func (n *node) allStarved() bool { return n.starvedImages > 0 && n.progressingImages == 0 }
