// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// appointResolver sees to it that exactly one node asks the registry what a tag means
// while some prefetch needs to know. It becomes the seed of its platform thereby.
func (d *draft) appointResolver(im *image) {
	var resolver *seat
	if len(im.asking) > 0 && !im.leftAsking() {
		if resolver = im.resolver(); resolver == nil {
			resolver = d.relayResolver(im)
		}
		if resolver != nil {
			im.ask(resolver)
		}
	}
	im.dismiss(resolver)
}

// resolver is the seed that asks already, or else one that can ask as well: no other
// node has to be let upstream then.
func (im *image) resolver() *seat {
	var resolver *seat
	for _, s := range im.seats {
		able := s.isSeed() && s.terms != nil && !s.withheld() && (s.bound() || s.stand == pulling || s.stand == holding)
		if able && (resolver == nil || !unanswered(resolver.entry) && unanswered(s.entry)) {
			resolver = s
		}
	}
	return resolver
}

// leftAsking says that a node which nothing wants any more may still be asking.
func (im *image) leftAsking() bool {
	return slices.ContainsFunc(im.seats, func(s *seat) bool {
		return s.terms == nil && s.bound() && unanswered(s.entry)
	})
}

// relayResolver chooses a new resolver, once the last one is relieved.
func (d *draft) relayResolver(im *image) *seat {
	var candidates, failing []*seat
	for _, s := range im.seats {
		if s.seeds() && s.terms != nil {
			failing = append(failing, s)
		}
		if s.fit() && s.terms.asking {
			candidates = append(candidates, s)
		}
	}
	for _, s := range d.replace(im, failing, candidates) {
		if g := im.groupOf(s); len(failing) == 0 && g.open > 0 && d.affords(s) {
			d.appoint(im, g, s, "")
			return s
		}
	}
	return nil
}

// ask has the resolver ask for all open marks, and nobody else. What it has or is bringing
// for those who have been told, it keeps until the new answer is there.
func (im *image) ask(resolver *seat) {
	request := im.request(resolver.entry.Wanted)
	resolver.next = resolver.terms.entry(im.name, known(resolver.entry), v1alpha1.RegistryPolicyDefault)
	resolver.next.Request = request
	for _, s := range im.seats {
		if s != resolver && s.next != nil && s.next.Request != "" && !s.bound() {
			s.next = s.terms.renew(s.next)
			s.next.Request = ""
		}
	}
}

// dismiss relieves the seeds of what nobody asks for any more.
func (im *image) dismiss(resolver *seat) {
	for _, s := range im.seats {
		if s == resolver || s.terms == nil || s.bound() || !s.seeds() {
			continue
		}
		superseded := !s.current && im.digest != ""
		unasked := unanswered(s.entry) && (resolver != nil || len(im.asking) == 0)
		if superseded || unasked {
			im.relieve(s)
		}
	}
}

// appointSeeds lets nodes of one platform use the upstream: as seeds while nobody holds
// the image, and after that in place of a mirror that does not have it.
func (d *draft) appointSeeds(im *image, g *group) {
	if im.digest == "" {
		return
	}
	want := d.limits.UpstreamPullers
	var candidates, failing []*seat
	for _, s := range g.seats {
		switch {
		case s.seeds() && (s.bound() || s.stand == pulling || s.stand == holding): // and is to ask for the tag
			want--
		case s.seeds() && !unanswered(s.entry):
			failing = append(failing, s)
		}
		if s.terms != nil && d.mayFetch(g, s) {
			candidates = append(candidates, s)
		}
	}
	if g.holders > 0 {
		for _, s := range failing {
			d.remember(im, s)
			im.relieve(s) // to try the mirror again
		}
		failing = nil
	}
	if want <= 0 {
		return
	}
	for _, s := range d.replace(im, failing, candidates) {
		if want > 0 && g.open > 0 && !s.isSeed() && d.affords(s) {
			d.appoint(im, g, s, im.digest)
			want--
		}
	}
}

// mayFetch says that a node is one of those who may get an image from the upstream.
func (d *draft) mayFetch(g *group, s *seat) bool {
	switch {
	case !s.eligible() || s.current && s.stand == holding:
		return false
	case g.holders == 0:
		return true
	default:
		return d.limits.MirrorFallback == FallbackUpstream && d.notOnMirror(g, s)
	}
}

// notOnMirror says that the mirror failed a node although somebody held the image.
func (d *draft) notOnMirror(g *group, s *seat) bool {
	return s.unserved() && g.holders > 0 && !d.since(s.entry.ChangedAt).Before(g.since)
}

// unserved says that a node tried the mirror in vain until its retries ran out.
func (s *seat) unserved() bool {
	return s.current && s.stand == failed && s.entry.FailedOnMirror()
}

// replace relieves those who fail as soon as somebody else, or they themselves after
// a rest, can take over; and returns who can, the best first. Until then they stay, so
// that everybody sees why nothing moves.
func (d *draft) replace(im *image, failing, candidates []*seat) []*seat {
	for _, s := range failing {
		d.remember(im, s)
	}
	line := d.inLine(im, candidates)
	if len(line) > 0 {
		for _, s := range failing {
			im.relieve(s)
		}
	}
	return line
}

// relieve makes a seed an ordinary node again. What it holds stays pinned, and the
// request stays with it, for that tells what its agent may be doing until it has heard.
func (im *image) relieve(s *seat) {
	s.relieved = true
	s.next = nil
	if digest := held(s.entry); digest != "" {
		s.next = s.terms.entry(im.name, digest, v1alpha1.RegistryPolicyMirror)
		s.next.Request = s.entry.Wanted.Request
	}
}

// appoint makes a node a seed.
func (d *draft) appoint(im *image, g *group, s *seat, digest string) {
	s.next = s.terms.entry(im.name, digest, v1alpha1.RegistryPolicyDefault)
	g.open--
	if !s.counted {
		d.pulls++
	}
	s.node.holds++
	im.credit(s.node)
}

// affords says that one more pull stays within the limit of the cluster.
func (d *draft) affords(s *seat) bool {
	return s.counted || d.limits.MaxConcurrentPulls <= 0 || d.pulls < d.limits.MaxConcurrentPulls
}

// seeds says that a seat is a seed and stays one.
func (s *seat) seeds() bool {
	return s.isSeed() && s.next != nil && s.next.RegistryPolicy == v1alpha1.RegistryPolicyDefault
}

func (im *image) groupOf(s *seat) *group {
	at := slices.IndexFunc(im.groups, func(g *group) bool { return g.platform == s.node.Platform })
	return im.groups[at]
}
