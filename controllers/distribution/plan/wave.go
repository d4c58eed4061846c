// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// wave is the nodes of one image and platform that wait for their turn at the mirror.
type wave struct {
	image    *image
	openings int
	queue    []*placement
	// listed nodes are said by their kubelets to hold the digest. They take no room, for
	// most have nothing to pull; but lists may be old, so they count for the cluster.
	listed []*placement
}

// admitWaves lets as many nodes pull from the mirror as there are holders to serve
// them. Images take turns, so that a large prefetch does not keep a small one waiting.
func (d *planner) admitWaves() {
	d.findStarved()
	var waves []*wave
	for _, im := range d.images {
		for _, g := range im.groups {
			if im.digest != "" {
				waves = append(waves, d.newWave(im, g))
			}
		}
	}
	for len(waves) > 0 {
		going := waves[:0]
		for _, w := range waves {
			switch {
			case len(w.listed) > 0 && d.withinPullLimit(w.listed[0]):
				d.admit(w.image, w.listed[0])
				w.listed = w.listed[1:]
			case len(w.queue) > 0 && w.openings > 0 && d.withinPullLimit(w.queue[0]):
				d.admit(w.image, w.queue[0])
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

// newWave finds out who waits, and how many can be served. Whoever fails, stalls or is
// lost takes no room: only those who are getting on do.
func (d *planner) newWave(im *image, g *platformGroup) *wave {
	sources, shares, busy := float64(g.holders), 0.0, 0
	var listed []*placement
	var line [4][]*placement
	for _, s := range g.placements {
		switch {
		case s.current && s.staysSeed():
			if d.limits.FollowSeed && s.state == pulling && s.followable(im.digest) {
				sources++
			}
		case s.next != nil && s.next.RegistryPolicy == v1alpha1.RegistryPolicyDefault:
		case s.mirrorFailed() && !d.failedDespiteHolders(g, s):
			// There was nobody to serve it. It comes again, afresh.
			s.next = nil
		case s.current && !s.demoted:
			if s.counted {
				if !s.starved && !(s.queued() && s.node.allStarved()) {
					busy++
				}
				if d.limits.FollowSeed {
					shares += s.share(im.digest)
				}
			}
		case s.requirements == nil || !s.admissible():
		case s.demoted && s.reportsPresent(im.digest): // it keeps it already
		case s.reportsPresent(im.digest):
			s.next = s.requirements.newEntry(im.name, im.digest, v1alpha1.RegistryPolicyMirror) // nothing is going to be pulled
		case s.listing == digestListed:
			listed = append(listed, s)
		default:
			place := s.queueClass()
			line[place] = append(line[place], s)
		}
	}
	room := int(float64(min(d.limits.Fanout, len(g.placements)))*(sources+min(shares, maxPartialWeight*sources))) - busy
	if g.starved > 0 && room > 0 {
		for _, seats := range line {
			im.shuffle(seats)
		}
	}
	return &wave{im, room, slices.Concat(line[:]...), listed}
}

// queueClass is where in the line a node waits: who may hold the image comes first, those
// never heard of late, and last those whom the mirror serves nothing else either.
func (s *placement) queueClass() int {
	switch {
	case s.node.allStarved():
		return 3
	case s.listing == nameListed:
		return 0
	case s.node.agentKnown:
		return 1
	default:
		return 2
	}
}

// shuffle draws the order of nodes in a line once somebody in front has got nothing:
// neighbours by name are often neighbours in the network as well, and those behind are
// not to wait until each of them has been tried.
func (im *image) shuffle(seats []*placement) {
	draws := make(map[*placement]uint64, len(seats))
	for _, s := range seats {
		draws[s] = stableHash(s.node.Name, im.name) // what comes first is mixed best
	}
	slices.SortFunc(seats, func(a, b *placement) int {
		return cmp.Or(cmp.Compare(draws[a], draws[b]), cmp.Compare(a.node.index, b.node.index))
	})
}

// findStarved finds out who gets nothing from the mirror.
func (d *planner) findStarved() {
	for _, im := range d.images {
		for _, g := range im.groups {
			for _, s := range g.placements {
				if s.starved = d.isStarved(g, s); s.starved {
					g.starved++
					s.node.starvedImages++
				} else if s.state == pulling && s.entry.Status != nil && s.entry.Status.State == v1alpha1.ImagePulling {
					s.node.progressingImages++
				}
			}
		}
	}
}

// allStarved says that nothing of what a node pulls comes, so that what waits for a slot on it
// waits in vain as well.
func (n *node) allStarved() bool { return n.starvedImages > 0 && n.progressingImages == 0 }

// isStarved says that a node gets nothing although others hold the image: it does not
// answer, or has failed and got nothing since, though it tries again, or has asked for a
// while. It is no load for those who hold the image. One that asks or tries again still
// counts for the limit of the cluster, for what it asks for may come before we hear of it.
// While nobody holds the image, followers fail because they wait for the seed, and keep
// their room.
func (d *planner) isStarved(g *platformGroup, s *placement) bool {
	status := s.entry.Status
	switch {
	case g.holders == 0 || !s.current || s.isSeed() || s.state == present || s.state == lost:
		return false
	case s.state != pulling || d.unresponsive(s):
		return true
	case !s.node.Acknowledged || status == nil || s.queued():
		return false
	case status.State == v1alpha1.ImagePulling && status.PulledBytes > 0:
		return false
	case status.Reason != "":
		return true
	}
	until := latest(d.orNow(s.entry.ProgressAt), g.holdersSince).Add(serveTimeout)
	d.wakeAt(until)
	return !d.now.Before(until)
}

// share is how much of an image a node can serve that is still pulling it: mirrors
// offer each blob as soon as it is there. So those who follow the seed make room for
// more followers before it is done, and no last one has the whole image to fetch then.
func (s *placement) share(digest string) float64 {
	status := s.entry.Status
	if status == nil || status.Digest != digest || status.SizeBytes <= 0 {
		return 0
	}
	return min(float64(status.PulledBytes)/float64(status.SizeBytes), 1)
}

// followable says that a seed is under way, so that others can follow it: it has the
// manifests, which tell the size. Who followed sooner would miss them, and a miss rests
// for seconds, in which a small image is there.
func (s *placement) followable(digest string) bool {
	status := s.entry.Status
	return status != nil && status.State == v1alpha1.ImagePulling && status.Digest == digest && status.SizeBytes > 0
}

// reportsPresent that the agent reports the image although the spec does not name it.
func (s *placement) reportsPresent(digest string) bool {
	status := s.entry.Status
	return status != nil && status.State == v1alpha1.ImagePresent && status.Digest == digest
}

func (d *planner) admit(im *image, s *placement) {
	s.next = s.requirements.newEntry(im.name, im.digest, v1alpha1.RegistryPolicyMirror)
	if !s.counted {
		d.runningPulls++
	}
}
