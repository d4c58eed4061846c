// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// placement is one image on one node: how it stands, and what it shall become.
type placement struct {
	node         *node
	entry        Entry
	requirements *requirements // nil: nothing wants the image here
	desired      bool          // some prefetch waits for this node
	current      bool          // it is asked for the present digest, or for what the tag means
	state        pullState
	listing      kubeletListing
	// counted: its pull is among those of the cluster already.
	counted bool
	// vain: the mirror serves it nothing.
	starved bool
	// relieved: it is a seed no longer, from this plan on.
	demoted bool
	next    *v1alpha1.NodeImage // the entry that the spec shall have; nil: none
}

// pullState is how a node gets on with what its spec asks of it for one image.
type pullState int

const (
	idle    pullState = iota // nothing is asked
	pulling                  // nothing speaks against its coming
	stalled                  // no progress for too long
	failed                   // the agent gave up
	lost                     // the node or its agent is gone or unfit
	present                  // the agent says it is there
)

// platformGroup is the seats of one platform; only they can serve each other.
type platformGroup struct {
	platform   string
	placements []*placement
	// seedsLeft is how many nodes more may be told to use the upstream.
	seedsLeft int
	// holders can serve the image. since is when the first of them was seen to.
	holders      int
	holdersSince time.Time
	// starved counts those whom the mirror serves nothing all the same.
	starved int
	// fromMirror and fetched count who got it from the mirror, and from the upstream.
	fromMirror, fromUpstream int
}

// listPlacements lists every node that an image concerns, and how it stands.
func (d *planner) listPlacements(im *image) {
	touched := d.collectDemand(im)
	found := im.entries
	all := make([]placement, 0, len(touched)+len(found))
	im.placements = make([]*placement, 0, cap(all))
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
		s.requirements, s.desired = d.demands[s.node.index].requirements, d.demands[s.node.index].desired
		d.demands[s.node.index] = nodeDemand{}
		d.noteLeftOutSecrets(s.requirements)
		s.state = d.pullStateOf(s)
		s.current = s.state != idle && (unanswered(s.entry) || target(s.entry) == im.digest)
		im.placements = append(im.placements, s)
		d.count(im, s)
	}
	d.groupByPlatform(im)
}

// noteLeftOutSecrets notes whose secrets found no place among those for an image.
func (d *planner) noteLeftOutSecrets(t *requirements) {
	if t == nil {
		return
	}
	for _, k := range t.leftOut {
		p := d.prefetches[k.prefetchIndex]
		if p.leftOutSecrets == nil {
			p.leftOutSecrets = make(map[string]bool)
		}
		p.leftOutSecrets[k.secret.Name] = true
	}
}

// pullStateOf reads the agent's answer in the light of what was asked.
func (d *planner) pullStateOf(s *placement) pullState {
	wanted, status := s.entry.Wanted, s.entry.Status
	switch {
	case wanted == nil:
		return idle
	case !unanswered(s.entry) && status != nil && status.State == v1alpha1.ImagePresent && status.Digest == target(s.entry):
		return present
	case !s.node.canPull():
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
func (d *planner) stallsAt(s *placement) time.Time {
	since, patience := d.orNow(s.entry.ProgressAt), d.limits.SeedTimeout
	switch {
	case !s.isSeed():
	case s.unpacking():
		patience *= unpackFactor
	case s.queued():
		since = latest(since, s.node.slotProgressAt)
	}
	return since.Add(patience)
}

// slotProgressAt is when an image last showed that the slots of its node are of use: something
// of it came, or it tried the mirror, which ends by itself. A try at the upstream that
// merely began or ended shows nothing, since all of them may hang one after the other.
func (d *planner) slotProgressAt(e Entry) time.Time {
	switch {
	case e.Status == nil:
		return time.Time{}
	case e.Status.State == v1alpha1.ImagePresent || e.Status.PulledBytes > 0:
		return d.orNow(e.ProgressAt)
	case e.Status.Attempts > 0 && e.Wanted != nil && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyMirror:
		return d.orNow(e.ChangedAt)
	}
	return time.Time{}
}

// unpacking says that the agent has received the whole image, and works on it.
func (s *placement) unpacking() bool {
	status := s.entry.Status
	return status != nil && status.State == v1alpha1.ImagePulling && status.FinishedAt != nil
}

// queued says that the agent knows of the image and has not begun with it.
func (s *placement) queued() bool {
	status := s.entry.Status
	return status != nil && status.Attempts == 0
}

// unanswered says that the node is to resolve the tag and has not yet. Meanwhile the
// digest in the entry, if there is one, is what it holds and keeps.
func unanswered(e Entry) bool {
	return resolvesTag(e) && (e.Status == nil || e.Status.Digest == "" || e.Status.Request != e.Wanted.Request)
}

// resolvesTag says that the digest is for the node to find out, or was.
func resolvesTag(e Entry) bool {
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

// unresponsive says that nothing came from an agent that should have answered by now. Its
// turn goes to the next, so that nodes without an agent do not hold up the others one
// after the other; should it answer yet, a wave is a little larger for a while.
func (d *planner) unresponsive(s *placement) bool {
	if s.node.Acknowledged || s.entry.Status != nil {
		return false
	}
	until := d.orNow(s.entry.ProgressAt).Add(answerTimeout)
	d.wakeAt(until)
	return !d.now.Before(until)
}

// target is the digest a node works on: what it was told, or else what it found itself.
func target(e Entry) string {
	if e.Wanted.Digest == "" && e.Status != nil || resolvesTag(e) && !unanswered(e) {
		return e.Status.Digest
	}
	return e.Wanted.Digest
}

// presentDigest is the digest that the agent says is there.
func presentDigest(e Entry) string {
	if e.Status == nil || e.Status.State != v1alpha1.ImagePresent {
		return ""
	}
	return e.Status.Digest
}

// lastDigest is the digest that the node holds, or was told or found out last.
func lastDigest(e Entry) string {
	digest := presentDigest(e)
	switch {
	case digest != "" || e.Wanted == nil:
		return digest
	case unanswered(e):
		return e.Wanted.Digest
	}
	return target(e)
}

// count keeps the books that go over all images.
func (d *planner) count(im *image, s *placement) {
	if s.state == pulling && !d.unresponsive(s) {
		s.counted = true
		d.runningPulls++
	}
	if s.state == present || s.isSeed() {
		s.node.imageCount++
	}
	if s.isSeed() && (s.state == pulling || s.state == present) {
		im.countSeed(s.node)
	}
}

// countSeed notes that a node is a seed, so that it becomes that of the other images of
// the same prefetches as well.
func (im *image) countSeed(n *node) {
	for _, p := range im.prefetches {
		p.seedImages[n.index]++
	}
}

// groupByPlatform sorts the seats by platform and counts who holds the image and who may use
// the upstream already.
func (d *planner) groupByPlatform(im *image) {
	groups := make(map[string]*platformGroup)
	for _, s := range im.placements {
		g, ok := groups[s.node.Platform]
		if !ok {
			g = &platformGroup{platform: s.node.Platform, seedsLeft: d.limits.UpstreamPullers}
			groups[g.platform] = g
			im.groups = append(im.groups, g)
		}
		g.placements = append(g.placements, s)
		if s.isSeed() || im.mayStillPull(s) {
			g.seedsLeft--
		}
		if s.serves(im.digest) {
			d.countHolder(g, s)
		}
	}
	slices.SortFunc(im.groups, func(a, b *platformGroup) int { return strings.Compare(a.platform, b.platform) })
}

// serves says that others can get the digest from the node, which is to keep it.
func (s *placement) serves(digest string) bool {
	return digest != "" && s.node.canPull() && s.state != idle && target(s.entry) == digest && presentDigest(s.entry) == digest
}

func (d *planner) countHolder(g *platformGroup, s *placement) {
	g.holders++
	if at := d.orNow(s.entry.ChangedAt); g.holders == 1 || at.Before(g.holdersSince) {
		g.holdersSince = at
	}
	switch s.entry.Status.Source {
	case v1alpha1.SourceMirror:
		g.fromMirror++
	case v1alpha1.SourceUpstream:
		g.fromUpstream++
	case v1alpha1.SourceLocal:
	}
}

// isSeed says that the spec, as it is, lets the node use the upstream.
func (s *placement) isSeed() bool {
	return s.entry.Wanted != nil && s.entry.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyDefault
}

// mayStillPull says that a node may still be pulling from the upstream, because its agent
// has not yet seen that it shall not. An agent goes on trying even after it reported
// Failed, and one that asks for a tag goes on to pull what the tag means now.
func (im *image) mayStillPull(s *placement) bool {
	status, wanted := s.entry.Status, s.entry.Wanted
	switch {
	case s.isSeed() || s.node.Acknowledged || s.node.silent:
		return false
	case status != nil && status.State == v1alpha1.ImagePresent:
		return wanted != nil && wanted.Request != "" && wanted.Request != status.Request
	}
	_, tried := im.history.failures[s.node.Name]
	return tried || status != nil && status.Source == v1alpha1.SourceUpstream
}

// awaitingAck says that a seed cannot be relieved yet: its agent has not answered, so that
// nothing would tell afterwards whether it had begun. Silence sets it free.
func (s *placement) awaitingAck() bool {
	return s.isSeed() && s.state != present && !s.node.Acknowledged && !s.node.silent
}

// removalPending says that the agent has not yet seen that the entry is gone. Were it put
// back now, the agent would notice nothing.
func (s *placement) removalPending() bool {
	return s.entry.Wanted == nil && s.entry.Status != nil && !s.node.Acknowledged
}

// admissible says that the node may be given something new to do for a prefetch that
// knows its digest.
func (s *placement) admissible() bool { return s.available() && s.requirements.resolved }

func (s *placement) available() bool {
	return s.desired && s.node.canPull() && !s.node.DiskPressure && !s.removalPending()
}
