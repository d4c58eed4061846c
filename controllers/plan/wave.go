// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
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
	var listed, hinted, known, unknown []*seat
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
			if s.stand == pulling && !d.unheard(s) {
				if !g.inVain(s) {
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
		case s.hint == hintName:
			hinted = append(hinted, s)
		case s.node.answers:
			known = append(known, s)
		default:
			unknown = append(unknown, s)
		}
	}
	queue := slices.Concat(hinted, known, unknown)
	room := float64(min(d.limits.Fanout, len(g.seats))) * (sources + min(shares, maxShares*sources))
	return &wave{im, int(room) - busy, queue, listed}
}

// inVain says that a node failed and has got nothing since, though it tries again: it is
// no load for those who hold the image. It still counts for the limit of the cluster,
// for its next try may be under way before we hear of it. While nobody holds the image,
// followers fail because they wait for the seed, and keep their room.
func (g *group) inVain(s *seat) bool {
	status := s.entry.Status
	if g.holders == 0 || !s.node.Acknowledged || status == nil || status.Reason == "" {
		return false
	}
	return status.State != v1alpha1.ImagePulling || status.PulledBytes == 0
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
