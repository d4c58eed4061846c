// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// seat is one image on one node: how it stands, and what it shall become.
type seat struct {
	node    *node
	entry   Entry
	terms   *terms // nil: nothing wants the image here
	desired bool   // some prefetch waits for this node
	current bool   // it is asked for the present digest, or for what the tag means
	stand   standing
	hint    hint
	// counted: its pull is among those of the cluster already.
	counted bool
	// vain: the mirror serves it nothing.
	vain bool
	// relieved: it is a seed no longer, from this plan on.
	relieved bool
	next     *v1alpha1.NodeImage // the entry that the spec shall have; nil: none
}

// standing is how a node gets on with what its spec asks of it for one image.
type standing int

const (
	idle    standing = iota // nothing is asked
	pulling                 // nothing speaks against its coming
	stalled                 // no progress for too long
	failed                  // the agent gave up
	lost                    // the node or its agent is gone or unfit
	holding                 // the agent says it is there
)

// group is the seats of one platform; only they can serve each other.
type group struct {
	platform string
	seats    []*seat
	// open is how many nodes more may be told to use the upstream.
	open int
	// holders can serve the image. since is when the first of them was seen to.
	holders int
	since   time.Time
	// vain counts those whom the mirror serves nothing all the same.
	vain int
	// mirrored and fetched count who got it from the mirror, and from the upstream.
	mirrored, fetched int
}

// seat lists every node that an image concerns, and how it stands.
func (d *draft) seat(im *image) {
	touched := d.claim(im)
	found := im.found
	all := make([]seat, 0, len(touched)+len(found))
	im.seats = make([]*seat, 0, cap(all))
	for len(touched) > 0 || len(found) > 0 {
		all = all[:len(all)+1]
		s := &all[len(all)-1]
		switch {
		case len(found) == 0 || len(touched) > 0 && touched[0].index < found[0].node.index:
			s.node, touched = touched[0], touched[1:]
		default:
			s.node, s.entry = found[0].node, found[0].entry
			if len(touched) > 0 && touched[0] == s.node {
				touched = touched[1:]
			}
			found = found[1:]
		}
		s.terms, s.desired = d.claims[s.node.index].terms, d.claims[s.node.index].desired
		d.claims[s.node.index] = claim{}
		d.tellLeftOut(s.terms)
		s.stand = d.standing(s)
		s.current = s.stand != idle && (unanswered(s.entry) || target(s.entry) == im.digest)
		im.seats = append(im.seats, s)
		d.count(im, s)
	}
	d.group(im)
}

// tellLeftOut notes whose secrets found no place among those for an image.
func (d *draft) tellLeftOut(t *terms) {
	if t == nil {
		return
	}
	for _, k := range t.left {
		p := d.prefetches[k.owner]
		if p.leftOut == nil {
			p.leftOut = make(map[string]bool)
		}
		p.leftOut[k.secret.Name] = true
	}
}

// standing reads the agent's answer in the light of what was asked.
func (d *draft) standing(s *seat) standing {
	wanted, status := s.entry.Wanted, s.entry.Status
	switch {
	case wanted == nil:
		return idle
	case !unanswered(s.entry) && status != nil && status.State == v1alpha1.ImagePresent && status.Digest == target(s.entry):
		return holding
	case !s.node.works():
		return lost
	case s.node.Acknowledged && s.entry.Failed():
		return failed
	}
	deadline := d.stallsAt(s)
	if !d.now.Before(deadline) {
		return stalled
	}
	d.wakeAt(deadline)
	return pulling
}

// stallsAt is when a node has made no progress for too long. A seed of many images is not
// to lose those that wait for a slot on it while it gets on with the others: whoever took
// over would fetch the layers again that they share. Nor is it to lose what it unpacks:
// that would begin anew.
func (d *draft) stallsAt(s *seat) time.Time {
	since, patience := d.since(s.entry.ProgressAt), d.limits.SeedTimeout
	switch {
	case !s.isSeed():
	case s.unpacks():
		patience *= unpackFactor
	case s.queued():
		since = latest(since, s.node.turnedAt)
	}
	return since.Add(patience)
}

// turnedAt is when an image last showed that the slots of its node are of use: something
// of it came, or it tried the mirror, which ends by itself. A try at the upstream that
// merely began or ended shows nothing, since all of them may hang one after the other.
func (d *draft) turnedAt(e Entry) time.Time {
	switch {
	case e.Status == nil:
		return time.Time{}
	case e.Status.State == v1alpha1.ImagePresent || e.Status.PulledBytes > 0:
		return d.since(e.ProgressAt)
	case e.Status.Attempts > 0 && e.Wanted != nil && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyMirror:
		return d.since(e.ChangedAt)
	}
	return time.Time{}
}

// unpacks says that the agent has received the whole image, and works on it.
func (s *seat) unpacks() bool {
	status := s.entry.Status
	return status != nil && status.State == v1alpha1.ImagePulling && status.FinishedAt != nil
}

// queued says that the agent knows of the image and has not begun with it.
func (s *seat) queued() bool {
	status := s.entry.Status
	return status != nil && status.Attempts == 0
}

// unanswered says that the node is to resolve the tag and has not yet. Meanwhile the
// digest in the entry, if there is one, is what it holds and keeps.
func unanswered(e Entry) bool {
	return asks(e) && (e.Status == nil || e.Status.Digest == "" || e.Status.Request != e.Wanted.Request)
}

// asks says that the digest is for the node to find out, or was.
func asks(e Entry) bool {
	return e.Wanted != nil && (e.Wanted.Digest == "" ||
		e.Wanted.Request != "" && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyDefault)
}

// Failed says that the agent has given up. One that asks again for a tag stays Present
// with what it holds, and has given up once its tries are used up or cannot help.
func (e Entry) Failed() bool {
	switch status := e.Status; {
	case status == nil:
		return false
	case status.State != v1alpha1.ImagePresent || status.Reason == "" || !unanswered(e):
		return status.State == v1alpha1.ImageFailed
	default:
		limit := e.Wanted.ImageDownloadRetryLimit
		return v1alpha1.IsRefusal(status.Reason) || limit != nil && status.Attempts > *limit
	}
}

// FailedOnMirror reports whether a node that may not use the upstream gave up because the
// mirror did not serve it.
func (e Entry) FailedOnMirror() bool {
	return e.Failed() && e.Wanted != nil && e.Wanted.RegistryPolicy != v1alpha1.RegistryPolicyDefault &&
		v1alpha1.IsMirrorFailure(e.Status.Reason)
}

// unheard says that nothing came from an agent that should have answered by now. Its
// turn goes to the next, so that nodes without an agent do not hold up the others one
// after the other; should it answer yet, a wave is a little larger for a while.
func (d *draft) unheard(s *seat) bool {
	if s.node.Acknowledged || s.entry.Status != nil {
		return false
	}
	until := d.since(s.entry.ProgressAt).Add(answerDelay)
	d.wakeAt(until)
	return !d.now.Before(until)
}

// target is the digest a node works on: what it was told, or else what it found itself.
func target(e Entry) string {
	if e.Wanted.Digest == "" && e.Status != nil || asks(e) && !unanswered(e) {
		return e.Status.Digest
	}
	return e.Wanted.Digest
}

// held is the digest that the agent says is there.
func held(e Entry) string {
	if e.Status == nil || e.Status.State != v1alpha1.ImagePresent {
		return ""
	}
	return e.Status.Digest
}

// known is the digest that the node holds, or was told or found out last.
func known(e Entry) string {
	digest := held(e)
	switch {
	case digest != "" || e.Wanted == nil:
		return digest
	case unanswered(e):
		return e.Wanted.Digest
	}
	return target(e)
}

// count keeps the books that go over all images.
func (d *draft) count(im *image, s *seat) {
	if s.stand == pulling && !d.unheard(s) {
		s.counted = true
		d.pulls++
	}
	if s.stand == holding || s.isSeed() {
		s.node.holds++
	}
	if s.isSeed() && (s.stand == pulling || s.stand == holding) {
		im.credit(s.node)
	}
}

// credit notes that a node is a seed, so that it becomes that of the other images of
// the same prefetches as well.
func (im *image) credit(n *node) {
	for _, p := range im.wanters {
		p.seeds[n.index]++
	}
}

// group sorts the seats by platform and counts who holds the image and who may use
// the upstream already.
func (d *draft) group(im *image) {
	groups := make(map[string]*group)
	for _, s := range im.seats {
		g, ok := groups[s.node.Platform]
		if !ok {
			g = &group{platform: s.node.Platform, open: d.limits.UpstreamPullers}
			groups[g.platform] = g
			im.groups = append(im.groups, g)
		}
		g.seats = append(g.seats, s)
		if s.isSeed() || im.lingers(s) {
			g.open--
		}
		if s.serves(im.digest) {
			d.countHolder(g, s)
		}
	}
	slices.SortFunc(im.groups, func(a, b *group) int { return strings.Compare(a.platform, b.platform) })
}

// serves says that others can get the digest from the node, which is to keep it.
func (s *seat) serves(digest string) bool {
	return digest != "" && s.node.works() && s.stand != idle && target(s.entry) == digest && held(s.entry) == digest
}

func (d *draft) countHolder(g *group, s *seat) {
	g.holders++
	if at := d.since(s.entry.ChangedAt); g.holders == 1 || at.Before(g.since) {
		g.since = at
	}
	switch s.entry.Status.Source {
	case v1alpha1.SourceMirror:
		g.mirrored++
	case v1alpha1.SourceUpstream:
		g.fetched++
	case v1alpha1.SourceLocal:
	}
}

// isSeed says that the spec, as it is, lets the node use the upstream.
func (s *seat) isSeed() bool {
	return s.entry.Wanted != nil && s.entry.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyDefault
}

// lingers says that a node may still be pulling from the upstream, because its agent
// has not yet seen that it shall not. An agent goes on trying even after it reported
// Failed, and one that asks for a tag goes on to pull what the tag means now.
func (im *image) lingers(s *seat) bool {
	status, wanted := s.entry.Status, s.entry.Wanted
	switch {
	case s.isSeed() || s.node.Acknowledged || s.node.silent:
		return false
	case status != nil && status.State == v1alpha1.ImagePresent:
		return wanted != nil && wanted.Request != "" && wanted.Request != status.Request
	}
	_, tried := im.memory.tried[s.node.Name]
	return tried || status != nil && status.Source == v1alpha1.SourceUpstream
}

// bound says that a seed cannot be relieved yet: its agent has not answered, so that
// nothing would tell afterwards whether it had begun. Silence sets it free.
func (s *seat) bound() bool {
	return s.isSeed() && s.stand != holding && !s.node.Acknowledged && !s.node.silent
}

// departing says that the agent has not yet seen that the entry is gone. Were it put
// back now, the agent would notice nothing.
func (s *seat) departing() bool {
	return s.entry.Wanted == nil && s.entry.Status != nil && !s.node.Acknowledged
}

// eligible says that the node may be given something new to do for a prefetch that
// knows its digest.
func (s *seat) eligible() bool { return s.fit() && s.terms.settled }

func (s *seat) fit() bool {
	return s.desired && s.node.works() && !s.node.DiskPressure && !s.departing()
}
