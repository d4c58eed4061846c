// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// fakeCluster is a small cluster: machines with agents that work off their specs, a
// registry, a mirror, and the part of the controller that remembers when it saw what.
type fakeCluster struct {
	now          time.Time
	limits       Limits
	machines     map[string]*machine
	prefetches   map[string]*Prefetch
	tags         map[string]string // what the registry says; absent: unknown
	registryDown bool              // the registry
	private      bool              // it wants goodKey
	mirrorDown   bool              // the mirror serves nobody
	memory       Memory
	writes       map[string]int // spec changes by "node image"
	violation    string         // the first bound that a plan has broken
	checkPulls   bool           // check what nodes do, not only what they are told
}

// machine is a node, its NodeImageSet, and its agent.
type machine struct {
	node       Node
	spec       map[string]v1alpha1.NodeImage
	generation int
	observed   int
	status     map[string]v1alpha1.NodeImageStatus
	dead       bool              // the agent does not run
	offline    bool              // no registry from here, though the mirror works
	cutOff     bool              // the mirror does not serve this node
	asks       int               // turns for which a pull goes on asking a mirror that misses
	full       bool              // its disk is
	slots      int               // pulls that its agent runs at a time; 0: any number
	pace       int               // turns that a layer takes; 0: one
	unpacking  int               // turns between the last layer and the end
	hung       bool              // the agent runs, and its pulls make no progress
	hungAfter  int64             // what comes before a pull hangs
	patience   int               // turns after which it stops a hung try and begins the next; 0: never
	stuck      map[string]int    // turns in which a pull got nothing, by image
	busy       bool              // the last turn was part of something, though nothing is to be seen of it
	content    map[string]string // digest by image
	pulls      int               // done, from wherever
	seen       map[string]v1alpha1.NodeImage
	// What the agent's watch has brought it of the spec, which may be old.
	view           map[string]v1alpha1.NodeImage
	viewGeneration int
	// What the controller's cache shows of the status, which may be old.
	cached         map[string]v1alpha1.NodeImageStatus
	cachedObserved int
	heard          time.Time
	changed        map[string]time.Time
	progress       map[string]time.Time
}

func newFakeCluster() *fakeCluster {
	limits := DefaultLimits()
	return &fakeCluster{
		now:        time.Unix(1_700_000_000, 0),
		limits:     limits,
		machines:   make(map[string]*machine),
		prefetches: make(map[string]*Prefetch),
		tags:       make(map[string]string),
		writes:     make(map[string]int),
	}
}

func (c *fakeCluster) addNode(name string, change ...func(*Node)) *machine {
	m := &machine{
		node:     Node{Name: name, Platform: "linux/amd64", Ready: true},
		spec:     make(map[string]v1alpha1.NodeImage),
		status:   make(map[string]v1alpha1.NodeImageStatus),
		content:  make(map[string]string),
		seen:     make(map[string]v1alpha1.NodeImage),
		cached:   make(map[string]v1alpha1.NodeImageStatus),
		changed:  make(map[string]time.Time),
		progress: make(map[string]time.Time),
		stuck:    make(map[string]int),
	}
	for _, modify := range change {
		modify(&m.node)
	}
	c.machines[name] = m
	return m
}

func (c *fakeCluster) addNodes(count int) {
	for i := range count {
		c.addNode(fmt.Sprintf("n%03d", i))
	}
}

func (c *fakeCluster) addPrefetch(name string, images ...string) *Prefetch {
	p := &Prefetch{
		Key: "team/" + name, Namespace: "team", UID: name, Resolution: "1", Images: images,
		Resolved: make(map[string]Resolved), RetryLimit: 3, Retention: v1alpha1.RetentionPinned,
	}
	c.prefetches[p.Key] = p
	for _, image := range images {
		if _, ok := c.tags[image]; !ok && digestIn(image) == "" {
			c.tags[image] = "sha256:" + image + "-1"
		}
	}
	return p
}

// state is what the controller sees now.
func (c *fakeCluster) state() State {
	s := State{Now: c.now, Memory: c.memory}
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		n := m.node
		n.Acknowledged = m.cachedObserved == m.generation
		n.HeardAt = m.heard
		n.Entries = make(map[string]Entry)
		for image, wanted := range m.spec {
			n.Entries[image] = Entry{Wanted: &wanted, ChangedAt: m.changed[image], ProgressAt: m.progress[image]}
		}
		for image, status := range m.cached {
			e := n.Entries[image]
			e.Status, e.ChangedAt, e.ProgressAt = &status, m.changed[image], m.progress[image]
			n.Entries[image] = e
		}
		s.Nodes = append(s.Nodes, n)
	}
	for _, key := range slices.Sorted(maps.Keys(c.prefetches)) {
		p := *c.prefetches[key]
		p.Resolved = maps.Clone(p.Resolved)
		s.Prefetches = append(s.Prefetches, p)
	}
	return s
}

// plan asks for the next step and writes it. It says whether anything changed.
func (c *fakeCluster) plan() (Step, bool) {
	seen := c.state()
	step := Next(seen, c.limits)
	c.memory = step.Memory
	for _, name := range slices.Sorted(maps.Keys(step.Sets)) {
		c.machines[name].write(c, step.Sets[name])
	}
	if over := c.boundsViolation(seen); over != "" && c.violation == "" {
		c.violation = over + "\n" + c.String()
	}
	changed := len(step.Sets) > 0
	for key, o := range step.Prefetches {
		for image, resolved := range o.Digests {
			if c.prefetches[key].Resolved[image] != resolved {
				c.prefetches[key].Resolved[image] = resolved
				changed = true
			}
		}
	}
	return step, changed
}

func (m *machine) write(cluster *fakeCluster, set []v1alpha1.NodeImage) {
	if m.cachedObserved == m.generation {
		m.heard = cluster.now
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
			m.changed[image], m.progress[image] = cluster.now, cluster.now
			cluster.writes[m.node.Name+" "+image]++
		}
	}
}

func union[V any](a, b map[string]V) map[string]V {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// deliver brings the spec to the agent.
func (m *machine) deliver() { m.view, m.viewGeneration = m.spec, m.generation }

// work is one turn of the agent: it moves each image of the spec that it knows on by one.
func (c *fakeCluster) work(m *machine) {
	m.busy = false
	if m.dead {
		return
	}
	for image := range m.status {
		if _, ok := m.view[image]; !ok {
			delete(m.status, image)
			delete(m.seen, image)
		}
	}
	for _, image := range slices.Sorted(maps.Keys(m.view)) {
		m.status[image] = c.advance(m, m.view[image])
	}
	m.observed = m.viewGeneration
}

// round has every agent do one turn, and the controller see it.
func (c *fakeCluster) round() (moved bool) {
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		m.deliver()
		c.work(m)
		moved = c.report(m) || m.busy || moved
	}
	c.now = c.now.Add(time.Second)
	return moved
}

// fetching is who pulls from the upstream at this moment, by image and platform.
func (c *fakeCluster) fetching() map[string][]string {
	fetching := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		for image, status := range m.status {
			if status.State == v1alpha1.ImagePulling && status.Source == v1alpha1.SourceUpstream {
				key := image + " on " + m.node.Platform
				fetching[key] = append(fetching[key], name)
			}
		}
	}
	return fetching
}

func (c *fakeCluster) advance(m *machine, entry v1alpha1.NodeImage) v1alpha1.NodeImageStatus {
	before, known := m.seen[entry.Name]
	m.seen[entry.Name] = entry
	status := m.status[entry.Name]
	if !known || before.Digest != entry.Digest || before.Request != entry.Request || before.RegistryPolicy != entry.RegistryPolicy {
		// A digest filled in is the same work.
		if !(known && entry.Digest == status.Digest && before.RegistryPolicy == entry.RegistryPolicy && before.Request == entry.Request) {
			again := v1alpha1.NodeImageStatus{Name: entry.Name, State: v1alpha1.ImagePending, Digest: status.Digest, Request: status.Request}
			if status.State == v1alpha1.ImagePresent && status.Digest == entry.Digest {
				again.State, again.Source = status.State, status.Source // it is there, and came from where it came from
			}
			status = again
		}
	}
	needless := status.State == v1alpha1.ImagePresent || entry.Digest != "" && m.content[entry.Name] == entry.Digest
	if status.State != v1alpha1.ImagePulling && !needless && !m.hasSlot() {
		return status
	}
	fail := func(reason string, final bool) v1alpha1.NodeImageStatus {
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
	asksInVain := status.State == v1alpha1.ImagePresent && status.Reason != ""
	if status.State == v1alpha1.ImageFailed || asksInVain && (v1alpha1.IsRefusal(status.Reason) || status.Attempts > *entry.ImageDownloadRetryLimit+1) {
		return status
	}
	digest := entry.Digest
	upstream := entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	if upstream && (digest == "" || entry.Request != "") {
		if status.Request != entry.Request || status.Digest == "" {
			if c.registryDown || m.offline {
				return fail(v1alpha1.ReasonRegistryUnavailable, false)
			}
			if c.tags[entry.Name] == "" || c.private && !slices.Contains(entry.ImagePullSecrets, goodKey) {
				return fail(v1alpha1.ReasonImageNotFound, true)
			}
			status.Digest, status.Request = c.tags[entry.Name], entry.Request
			status.State = v1alpha1.ImagePending
		}
		digest = status.Digest
	}
	status.Digest = digest
	if m.content[entry.Name] == digest {
		if status.State != v1alpha1.ImagePresent {
			if status.Source == "" {
				status.Source = v1alpha1.SourceLocal
			}
			status.State, status.Reason = v1alpha1.ImagePresent, ""
		}
		return status
	}
	if status.State != v1alpha1.ImagePulling {
		m.stuck[entry.Name] = 0
		status.State, status.SizeBytes, status.Attempts = v1alpha1.ImagePulling, layers, max(status.Attempts, 1)
		status.Source = v1alpha1.SourceMirror
		if upstream {
			status.Source = v1alpha1.SourceUpstream
		}
		return status
	}
	if status.FinishedAt != nil {
		if !m.hung && !m.waits(entry.Name, m.unpacking) {
			m.finish(entry.Name, &status)
		}
		return status
	}
	switch {
	case upstream && (c.registryDown || m.offline):
		return fail(v1alpha1.ReasonRegistryUnavailable, false)
	case m.full:
		return fail(v1alpha1.ReasonInsufficientDisk, false)
	case !upstream && !c.served(m, entry.Name, digest):
		if m.waits(entry.Name, m.asks) {
			return status
		}
		return fail(v1alpha1.ReasonNotOnMirror, false)
	}
	if m.hung && status.PulledBytes >= m.hungAfter {
		if m.stuck[entry.Name]++; m.patience > 0 && m.stuck[entry.Name]%m.patience == 0 {
			return fail(v1alpha1.ReasonNoProgress, false)
		}
		return status
	}
	if m.waits(entry.Name, m.pace) {
		return status
	}
	if status.PulledBytes++; status.PulledBytes < layers {
		return status
	}
	if m.unpacking > 0 {
		status.FinishedAt = &metav1.Time{Time: c.now}
		return status
	}
	m.finish(entry.Name, &status)
	return status
}

// waits says that something of a pull, which takes so many turns, takes another.
func (m *machine) waits(image string, turns int) bool {
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
	status.State, status.Reason = v1alpha1.ImagePresent, ""
}

// hasSlot says that one more pull may begin on a machine.
func (m *machine) hasSlot() bool {
	pulling := 0
	for _, status := range m.status {
		if status.State == v1alpha1.ImagePulling {
			pulling++
		}
	}
	return m.slots == 0 || pulling < m.slots
}

// goodKey opens a private registry.
var goodKey = v1alpha1.NamespacedSecretReference{Namespace: "y", Name: "good"}

// layers is how many turns a pull takes.
const layers = 4

// served says that the mirror has an image for a node.
func (c *fakeCluster) served(to *machine, image, digest string) bool {
	for _, m := range c.machines {
		if m != to && !c.mirrorDown && !to.cutOff && m.node.Platform == to.node.Platform && m.content[image] == digest {
			return true
		}
	}
	return false
}

// report lets the controller see a machine's status.
func (c *fakeCluster) report(m *machine) bool {
	changed := m.cachedObserved != m.observed
	for image := range union(m.cached, m.status) {
		old, had := m.cached[image]
		status, has := m.status[image]
		if had != has || !reflect.DeepEqual(old, status) {
			m.changed[image] = c.now
			changed = true
			if had != has || Progressed(Entry{Status: &old}, Entry{Status: &status}) {
				m.progress[image] = c.now
			}
		}
	}
	if changed {
		m.heard = c.now
		m.cachedObserved = m.observed
		m.cached = maps.Clone(m.status)
	}
	return changed
}

// settle lets everybody work until nothing changes any more, time included.
func (c *fakeCluster) settle(t failer) {
	t.Helper()
	for range 20_000 {
		step, changed := c.plan()
		c.check(t)
		moved := c.round() || changed
		if moved {
			continue
		}
		if step.WakeAt.IsZero() {
			return
		}
		c.now = maxTime(c.now, step.WakeAt)
	}
	t.Fatalf("it did not come to rest:\n%s", c)
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// check asserts what must hold at every moment.
func (c *fakeCluster) check(t failer) {
	t.Helper()
	if c.violation != "" {
		t.Fatalf("%s", c.violation)
	}
	seeds := make(map[string][]string)
	requests := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		for image, entry := range m.spec {
			if entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault {
				key := image + " on " + m.node.Platform
				seeds[key] = append(seeds[key], name)
				if status := m.status[image]; (Entry{Wanted: &entry, Status: &status}).unanswered() {
					requests[image] = append(requests[image], name)
				}
			} else if entry.Digest == "" {
				t.Fatalf("%s is to get %s from the mirror without a digest", name, image)
			}
		}
	}
	for key, nodes := range seeds {
		if len(nodes) > c.limits.UpstreamPullers {
			t.Fatalf("upstream for %s: %v", key, nodes)
		}
	}
	for key, nodes := range c.fetching() {
		if c.checkPulls && len(nodes) > c.limits.UpstreamPullers {
			t.Fatalf("upstream for %s: %v\n%s", key, nodes, c)
		}
	}
	for image, nodes := range requests {
		if len(nodes) > 1 {
			t.Fatalf("%s is resolved by %v", image, nodes)
		}
	}
}

// checkServed asserts that every desired node holds what the registry says, and the same.
func (c *fakeCluster) checkServed(t failer) {
	t.Helper()
	step := Next(c.state(), c.limits)
	digests := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(step.Prefetches)) {
		for _, name := range step.Prefetches[key].Nodes {
			m := c.machines[name]
			for _, image := range c.prefetches[key].Images {
				want := step.Prefetches[key].Digests[image].Digest
				got, asked := m.status[image], m.spec[image]
				if want == "" || got.State != v1alpha1.ImagePresent || got.Digest != want || asked.Digest != want || m.content[image] != want {
					t.Fatalf("%s on %s for %s: want %q, asked %+v, got %+v\n%s", image, name, key, want, asked, got, c)
				}
				if other, ok := digests[image]; ok && other != want {
					t.Fatalf("two digests of %s: %s and %s\n%s", image, other, want, c)
				}
				digests[image] = want
			}
		}
	}
}

func (c *fakeCluster) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(c.prefetches)) {
		p := c.prefetches[key]
		fmt.Fprintf(&b, "%s@%s %v selector %v replicas %v resolved %v\n", key, p.Resolution, p.Images, p.NodeSelector, p.Replicas, p.Resolved)
	}
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		fmt.Fprintf(&b, "%s %s ready=%v cordon=%v dead=%v offline=%v gen=%d/%d heard=%v\n", name, m.node.Platform, m.node.Ready,
			m.node.Unschedulable, m.dead, m.offline, m.cachedObserved, m.generation, c.now.Sub(m.heard))
		for _, image := range slices.Sorted(maps.Keys(union(keys(m.spec), keys(m.status)))) {
			e, s := m.spec[image], m.status[image]
			fmt.Fprintf(&b, "   %s asked %s %s %q; is %s %s %s %q %s tries %d; holds %s\n", image, e.RegistryPolicy, e.Digest, e.Request,
				s.State, s.Digest, s.Source, s.Request, s.Reason, s.Attempts, m.content[image])
		}
	}
	return b.String()
}

func keys[V any](m map[string]V) map[string]bool {
	k := make(map[string]bool)
	for key := range m {
		k[key] = true
	}
	return k
}

// shuffled is the same state in another order.
func shuffled(s State, seed uint64) State {
	r := rand.New(rand.NewPCG(seed, 1))
	s.Nodes, s.Prefetches = slices.Clone(s.Nodes), slices.Clone(s.Prefetches)
	r.Shuffle(len(s.Nodes), func(i, j int) { s.Nodes[i], s.Nodes[j] = s.Nodes[j], s.Nodes[i] })
	r.Shuffle(len(s.Prefetches), func(i, j int) { s.Prefetches[i], s.Prefetches[j] = s.Prefetches[j], s.Prefetches[i] })
	for i := range s.Nodes {
		hints := slices.Clone(s.Nodes[i].KubeletImages)
		r.Shuffle(len(hints), func(a, b int) { hints[a], hints[b] = hints[b], hints[a] })
		s.Nodes[i].KubeletImages = hints
	}
	for i := range s.Prefetches {
		images := slices.Clone(s.Prefetches[i].Images)
		r.Shuffle(len(images), func(a, b int) { images[a], images[b] = images[b], images[a] })
		s.Prefetches[i].Images = images
	}
	return s
}

// nodesWithPolicy is the nodes whose spec names an image with that policy, in order.
func (c *fakeCluster) nodesWithPolicy(image string, policy v1alpha1.RegistryPolicy) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		if entry, ok := c.machines[name].spec[image]; ok && entry.RegistryPolicy == policy {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func (c *fakeCluster) seeds(image string) string {
	return c.nodesWithPolicy(image, v1alpha1.RegistryPolicyDefault)
}
func (c *fakeCluster) peers(image string) string {
	return c.nodesWithPolicy(image, v1alpha1.RegistryPolicyMirror)
}

// run lets some seconds pass, with everybody at work, and returns the last plan.
func (c *fakeCluster) run(t failer, seconds int) (step Step) {
	t.Helper()
	for range seconds {
		step, _ = c.plan()
		c.check(t)
		c.round()
	}
	return step
}

// planUntilStable plans until nothing moves, with nobody answering and no time passing.
func (c *fakeCluster) planUntilStable(t failer) Step {
	t.Helper()
	for range 10 {
		step, changed := c.plan()
		c.check(t)
		if !changed {
			return step
		}
	}
	t.Fatalf("the plan goes on by itself:\n%s", c)
	return Step{}
}
