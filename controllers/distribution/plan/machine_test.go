// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// machine is a node, its NodeImageSet, and its agent.
type machine struct {
	node        Node
	spec        map[string]v1alpha1.NodeImage
	generation  int
	observed    int
	status      map[string]v1alpha1.NodeImageStatus
	dead        bool              // the agent does not run
	offline     bool              // no registry from here, though the mirror works
	cutOff      bool              // the mirror does not serve this node
	missTurns   int               // turns in which a pull goes on asking a mirror that misses
	diskFull    bool              // its disk has no room
	slots       int               // pulls that its agent runs at a time; 0: any number
	layerTurns  int               // turns that a layer takes; 0: one
	unpackTurns int               // turns between the last layer and Present
	hung        bool              // the agent runs, and its pulls make no progress
	hungAfter   int64             // layers that come before a pull hangs
	retryTurns  int               // turns after which it ends a hung try and begins the next; 0: never
	stuck       map[string]int    // turns in which a pull received nothing, by image
	busy        bool              // the last turn did something that no status shows
	content     map[string]string // digest by image
	found       map[string]string // what it has found when it was asked what it has, by image
	reported    map[string]string // of that, what the controller has heard
	pulls       int               // pulls that are done, from anywhere
	worked      map[string]v1alpha1.NodeImage
	// progressed are the images that got on since the last report, by what the machine did. Progressed
	// is not asked, so that a mistake in it does not hide here.
	progressed map[string]bool
	// What the agent's watch has shown it of the spec, which may be old.
	view           map[string]v1alpha1.NodeImage
	viewGeneration int
	// What the controller's cache shows of the status, which may be old.
	cached         map[string]v1alpha1.NodeImageStatus
	cachedObserved int
	heardAt        time.Time
	changedAt      map[string]time.Time
	progressAt     map[string]time.Time
}

// lastHeard is when the agent of a machine last wrote its status, heartbeats included.
func (m *machine) lastHeard(now time.Time) time.Time {
	if m.dead {
		return m.heardAt
	}
	return latest(m.heardAt, now.Add(-v1alpha1.HeartbeatInterval))
}

// works reports whether the agent has said that it has images to bring.
func (m *machine) works() bool {
	for _, status := range m.cached {
		if status.State.Unfinished() {
			return true
		}
	}
	return false
}

func (m *machine) write(cluster *fakeCluster, set []v1alpha1.NodeImage) {
	if m.cachedObserved == m.generation {
		due := cluster.now
		if m.works() {
			due = m.lastHeard(cluster.now).Add(v1alpha1.HeartbeatInterval)
		}
		m.heardAt = earlier(due, cluster.now)
	}
	m.generation++
	before := m.spec
	m.spec = make(map[string]v1alpha1.NodeImage)
	for _, entry := range set {
		m.spec[entry.Name] = entry
	}
	for _, image := range slices.Sorted(maps.Keys(union(before, m.spec))) {
		old, had := before[image]
		if entry, has := m.spec[image]; had != has || !sameEntry(&old, &entry) {
			m.changedAt[image], m.progressAt[image] = cluster.now, cluster.now
			cluster.writes[m.node.Name+" "+image]++
		}
	}
}

// deliver shows the spec to the agent.
func (m *machine) deliver() { m.view, m.viewGeneration = m.spec, m.generation }

// work is one turn of the agent: each image of the spec that it knows gets on by one step.
func (c *fakeCluster) work(m *machine) {
	m.busy = false
	if m.dead {
		return
	}
	for image := range m.status {
		if _, ok := m.view[image]; !ok {
			delete(m.status, image)
			delete(m.found, image)
			delete(m.worked, image)
		}
	}
	for _, image := range slices.Sorted(maps.Keys(m.view)) {
		m.status[image] = c.advance(m, m.view[image])
	}
	m.observed = m.viewGeneration
}

// lookUp says what the machine has under a name.
func (m *machine) lookUp(image string, was v1alpha1.NodeImageStatus) v1alpha1.NodeImageStatus {
	m.found[image] = m.content[image]
	status := v1alpha1.NodeImageStatus{Name: image, Attempts: was.Attempts + 1, State: v1alpha1.ImageFailed, Reason: v1alpha1.ReasonImageNotOnNode}
	if digest := m.content[image]; digest != "" {
		status = v1alpha1.NodeImageStatus{Name: image, Attempts: 1, State: v1alpha1.ImagePresent, Digest: digest, Source: v1alpha1.SourceLocal}
	}
	m.progressed[image] = m.progressed[image] || status.State != was.State || status.Digest != was.Digest
	return status
}

func (c *fakeCluster) advance(m *machine, entry v1alpha1.NodeImage) v1alpha1.NodeImageStatus {
	before, known := m.worked[entry.Name]
	m.worked[entry.Name] = entry
	was := m.status[entry.Name]
	status := was
	if !known || before.Digest != entry.Digest || before.Request != entry.Request || before.RegistryPolicy != entry.RegistryPolicy {
		// A digest filled in is the same work.
		if !(known && entry.Digest == status.Digest && before.RegistryPolicy == entry.RegistryPolicy && before.Request == entry.Request) {
			restarted := v1alpha1.NodeImageStatus{Name: entry.Name, State: v1alpha1.ImagePending, Digest: status.Digest, Request: status.Request}
			if status.State == v1alpha1.ImagePresent && status.Digest == entry.Digest {
				restarted.State, restarted.Source = status.State, status.Source // it stays there, with its source
			} else if status.State == v1alpha1.ImagePresent {
				m.progressed[entry.Name] = true // it is no longer what is wanted
			}
			status = restarted
		}
	}
	if entry.RegistryPolicy == v1alpha1.RegistryPolicyLocal {
		return m.lookUp(entry.Name, was)
	}
	needless := status.State == v1alpha1.ImagePresent || entry.Digest != "" && m.content[entry.Name] == entry.Digest
	if status.State != v1alpha1.ImagePulling && !needless && !m.hasSlot() {
		return status
	}
	fail := func(reason string, final bool) v1alpha1.NodeImageStatus {
		if was.Attempts == 0 {
			m.progressed[entry.Name] = true // it had the slot that it waited for
		}
		status.Attempts = max(status.Attempts, 1) + 1 // the next one's number
		status.Reason = reason
		switch {
		case entry.Digest != "" && m.content[entry.Name] == entry.Digest: // what the tag meant before
			status.State, status.Digest = v1alpha1.ImagePresent, entry.Digest
		case final || status.Attempts > *entry.ImageDownloadRetryLimit+1:
			status.State = v1alpha1.ImageFailed
		default:
			status.State = v1alpha1.ImagePending
		}
		return status
	}
	stillUnanswered := status.State == v1alpha1.ImagePresent && status.Reason != ""
	if status.State == v1alpha1.ImageFailed || stillUnanswered && (v1alpha1.IsRefusal(status.Reason) || status.Attempts > *entry.ImageDownloadRetryLimit+1) {
		return status
	}
	digest := entry.Digest
	upstream := entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	if upstream && (digest == "" || entry.Request != "") {
		if status.Request != entry.Request || status.Digest == "" {
			if c.registryDown || m.offline {
				return fail(v1alpha1.ReasonRegistryUnavailable, false)
			}
			if c.tags[entry.Name] == "" || c.private && !slices.Contains(entry.ImagePullSecrets, acceptedSecret) {
				return fail(v1alpha1.ReasonImageNotFound, true)
			}
			status.Digest, status.Request = c.tags[entry.Name], entry.Request
			c.answers[entry.Name] = append(c.answers[entry.Name], status.Digest)
			status.State = v1alpha1.ImagePending
			m.progressed[entry.Name] = true
		}
		digest = status.Digest
	}
	if status.Digest != digest {
		m.progressed[entry.Name] = true // it begins with another digest
	}
	status.Digest = digest
	if m.content[entry.Name] == digest {
		if status.State != v1alpha1.ImagePresent {
			if status.Source == "" {
				status.Source = v1alpha1.SourceLocal
			}
			status.State, status.Reason = v1alpha1.ImagePresent, ""
			m.progressed[entry.Name] = true
		}
		return status
	}
	if status.State != v1alpha1.ImagePulling {
		m.stuck[entry.Name] = 0
		if was.Attempts == 0 || was.State == v1alpha1.ImagePresent || was.SizeBytes == 0 {
			m.progressed[entry.Name] = true // it has its slot, was deleted, or its size becomes known
		}
		status.State, status.SizeBytes, status.Attempts = v1alpha1.ImagePulling, layers, max(status.Attempts, 1)
		status.Source = v1alpha1.SourceMirror
		if upstream {
			status.Source = v1alpha1.SourceUpstream
		}
		return status
	}
	if status.FinishedAt != nil {
		if !m.hung && !m.takesAnotherTurn(entry.Name, m.unpackTurns) {
			m.finish(entry.Name, &status)
		}
		return status
	}
	switch {
	case upstream && (c.registryDown || m.offline):
		return fail(v1alpha1.ReasonRegistryUnavailable, false)
	case m.diskFull:
		return fail(v1alpha1.ReasonInsufficientDisk, false)
	case !upstream && !c.mirrorServes(m, entry.Name, digest):
		if m.takesAnotherTurn(entry.Name, m.missTurns) {
			return status
		}
		return fail(v1alpha1.ReasonNotOnMirror, false)
	}
	if m.hung && status.PulledBytes >= m.hungAfter {
		if m.stuck[entry.Name]++; m.retryTurns > 0 && m.stuck[entry.Name]%m.retryTurns == 0 {
			return fail(v1alpha1.ReasonNoProgress, false)
		}
		return status
	}
	if m.takesAnotherTurn(entry.Name, m.layerTurns) {
		return status
	}
	m.progressed[entry.Name] = true
	if status.PulledBytes++; status.PulledBytes < layers {
		return status
	}
	if m.unpackTurns > 0 {
		status.FinishedAt = &metav1.Time{Time: c.now}
		return status
	}
	m.finish(entry.Name, &status)
	return status
}

// takesAnotherTurn reports whether a part of a pull that takes so many turns needs one more.
func (m *machine) takesAnotherTurn(image string, turns int) bool {
	if m.stuck[image]++; m.stuck[image] < turns {
		m.busy = true
		return true
	}
	m.stuck[image] = 0
	return false
}

func (m *machine) finish(image string, status *v1alpha1.NodeImageStatus) {
	m.content[image] = status.Digest
	m.pulls++
	m.progressed[image] = true
	status.State, status.Reason = v1alpha1.ImagePresent, ""
}

// hasSlot reports whether one more pull may begin on a machine.
func (m *machine) hasSlot() bool {
	pulling := 0
	for _, status := range m.status {
		if status.State == v1alpha1.ImagePulling {
			pulling++
		}
	}
	return m.slots == 0 || pulling < m.slots
}

// mirrorServes reports whether the mirror has an image for a node.
func (c *fakeCluster) mirrorServes(to *machine, image, digest string) bool {
	for _, m := range c.machines {
		if m != to && !c.mirrorDown && !to.cutOff && m.node.Platform == to.node.Platform && m.content[image] == digest {
			return true
		}
	}
	return false
}

// report shows a machine's status to the controller.
func (c *fakeCluster) report(m *machine) bool {
	changed := m.cachedObserved != m.observed
	for image := range union(m.cached, m.status) {
		old, had := m.cached[image]
		status, has := m.status[image]
		if had != has || !reflect.DeepEqual(old, status) {
			m.changedAt[image] = c.now
			changed = true
			if had != has || m.progressed[image] {
				m.progressAt[image] = c.now
			}
		}
	}
	clear(m.progressed)
	m.reported = maps.Clone(m.found)
	if changed {
		m.heardAt = c.now
		m.cachedObserved = m.observed
		m.cached = maps.Clone(m.status)
	}
	return changed
}

// acceptedSecret opens a private registry.
var acceptedSecret = v1alpha1.PullSecretSource{Namespace: "y", Name: "good"}

// layers is how many turns a pull takes.
const layers = 4
