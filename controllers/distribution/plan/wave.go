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
	image *image
	room  int
	queue []*seat
	// listed nodes are said by their kubelets to hold the digest. They take no room, for
	// most have nothing to pull; but lists may be old, so they count for the cluster.
	listed []*seat
}

// admitWaves lets as many nodes pull from the mirror as there are holders to serve
// them. Images take turns, so that a large prefetch does not keep a small one waiting.
func (d *draft) admitWaves() {
	d.findVain()
	var waves []*wave
	for _, im := range d.images {
		for _, g := range im.groups {
			if im.digest != "" {
				waves = append(waves, d.wave(im, g))
			}
		}
	}
	for len(waves) > 0 {
		going := waves[:0]
		for _, w := range waves {
			switch {
			case len(w.listed) > 0 && d.affords(w.listed[0]):
				d.admit(w.image, w.listed[0])
				w.listed = w.listed[1:]
			case len(w.queue) > 0 && w.room > 0 && d.affords(w.queue[0]):
				d.admit(w.image, w.queue[0])
				w.queue = w.queue[1:]
				w.room--
			default:
				continue
			}
			going = append(going, w)
		}
		waves = going
	}
}

// wave finds out who waits, and how many can be served. Whoever fails, stalls or is
// lost takes no room: only those who are getting on do.
func (d *draft) wave(im *image, g *group) *wave {
	sources, shares, busy := float64(g.holders), 0.0, 0
	var listed []*seat
	var line [4][]*seat
	for _, s := range g.seats {
		switch {
		case s.current && s.seeds():
			if d.limits.FollowSeed && s.stand == pulling && s.leads(im.digest) {
				sources++
			}
		case s.next != nil && s.next.RegistryPolicy == v1alpha1.RegistryPolicyDefault:
		case s.unserved() && !d.notOnMirror(g, s):
			// There was nobody to serve it. It comes again, afresh.
			s.next = nil
		case s.current && !s.relieved:
			if s.counted {
				if !s.vain && !(s.queued() && s.node.idles()) {
					busy++
				}
				if d.limits.FollowSeed {
					shares += s.share(im.digest)
				}
			}
		case s.terms == nil || !s.eligible():
		case s.relieved && s.says(im.digest): // it keeps it already
		case s.says(im.digest):
			s.next = s.terms.entry(im.name, im.digest, v1alpha1.RegistryPolicyMirror) // nothing is going to be pulled
		case s.hint == hintDigest:
			listed = append(listed, s)
		default:
			place := s.place()
			line[place] = append(line[place], s)
		}
	}
	room := int(float64(min(d.limits.Fanout, len(g.seats)))*(sources+min(shares, maxShares*sources))) - busy
	if g.vain > 0 && room > 0 {
		for _, seats := range line {
			im.shuffle(seats)
		}
	}
	return &wave{im, room, slices.Concat(line[:]...), listed}
}

// place is where in the line a node waits: who may hold the image comes first, those
// never heard of late, and last those whom the mirror serves nothing else either.
func (s *seat) place() int {
	switch {
	case s.node.idles():
		return 3
	case s.hint == hintName:
		return 0
	case s.node.answers:
		return 1
	default:
		return 2
	}
}

// shuffle draws the order of nodes in a line once somebody in front has got nothing:
// neighbours by name are often neighbours in the network as well, and those behind are
// not to wait until each of them has been tried.
func (im *image) shuffle(seats []*seat) {
	draws := make(map[*seat]uint64, len(seats))
	for _, s := range seats {
		draws[s] = draw(s.node.Name, im.name) // what comes first is mixed best
	}
	slices.SortFunc(seats, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(draws[a], draws[b]), cmp.Compare(a.node.index, b.node.index))
	})
}

// findVain finds out who gets nothing from the mirror.
func (d *draft) findVain() {
	for _, im := range d.images {
		for _, g := range im.groups {
			for _, s := range g.seats {
				if s.vain = d.inVain(g, s); s.vain {
					g.vain++
					s.node.vain++
				} else if s.stand == pulling && s.entry.Status != nil && s.entry.Status.State == v1alpha1.ImagePulling {
					s.node.pulls++
				}
			}
		}
	}
}

// idles says that nothing of what a node pulls comes, so that what waits for a slot on it
// waits in vain as well.
func (n *node) idles() bool { return n.vain > 0 && n.pulls == 0 }

// inVain says that a node gets nothing although others hold the image: it does not
// answer, or has failed and got nothing since, though it tries again, or has asked for a
// while. It is no load for those who hold the image. One that asks or tries again still
// counts for the limit of the cluster, for what it asks for may come before we hear of it.
// While nobody holds the image, followers fail because they wait for the seed, and keep
// their room.
func (d *draft) inVain(g *group, s *seat) bool {
	status := s.entry.Status
	switch {
	case g.holders == 0 || !s.current || s.isSeed() || s.stand == holding || s.stand == lost:
		return false
	case s.stand != pulling || d.unheard(s):
		return true
	case !s.node.Acknowledged || status == nil || s.queued():
		return false
	case status.State == v1alpha1.ImagePulling && status.PulledBytes > 0:
		return false
	case status.Reason != "":
		return true
	}
	until := latest(d.since(s.entry.ProgressAt), g.since).Add(serveDelay)
	d.wakeAt(until)
	return !d.now.Before(until)
}

// share is how much of an image a node can serve that is still pulling it: mirrors
// offer each blob as soon as it is there. So those who follow the seed make room for
// more followers before it is done, and no last one has the whole image to fetch then.
func (s *seat) share(digest string) float64 {
	status := s.entry.Status
	if status == nil || status.Digest != digest || status.SizeBytes <= 0 {
		return 0
	}
	return min(float64(status.PulledBytes)/float64(status.SizeBytes), 1)
}

// leads says that a seed is under way, so that others can follow it: it has the
// manifests, which tell the size. Who followed sooner would miss them, and a miss rests
// for seconds, in which a small image is there.
func (s *seat) leads(digest string) bool {
	status := s.entry.Status
	return status != nil && status.State == v1alpha1.ImagePulling && status.Digest == digest && status.SizeBytes > 0
}

// says that the agent reports the image although the spec does not name it.
func (s *seat) says(digest string) bool {
	status := s.entry.Status
	return status != nil && status.State == v1alpha1.ImagePresent && status.Digest == digest
}

func (d *draft) admit(im *image, s *seat) {
	s.next = s.terms.entry(im.name, im.digest, v1alpha1.RegistryPolicyMirror)
	if !s.counted {
		d.pulls++
	}
}
