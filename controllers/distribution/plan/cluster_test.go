// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

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
	registryDown bool              // the registry cannot be reached
	private      bool              // the registry wants acceptedSecret
	mirrorDown   bool              // the mirror serves no node
	memory       Memory
	writes       map[string]int // spec changes by "node image"
	violation    string         // the first bound that a plan has broken
	checkPulls   bool           // also check what nodes do, not only what their specs ask
	// answers are what the registry has said that a tag means, in order.
	answers   map[string][]string
	questions map[string]question // by "prefetch image"
	// Of node-local images: whom prefetches waited for at the last plan, the nodes, by "node image",
	// that may have come while an image was brought to others, and what all nodes have in the end.
	wanting  map[string]wanting
	came     map[string]bool
	imported map[string]string
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
		answers:    make(map[string][]string),
		questions:  make(map[string]question),
		wanting:    make(map[string]wanting),
		came:       make(map[string]bool),
		imported:   make(map[string]string),
	}
}

func (c *fakeCluster) addNode(name string, change ...func(*Node)) *machine {
	m := &machine{
		node:       Node{Name: name, Platform: "linux/amd64", Ready: true},
		spec:       make(map[string]v1alpha1.NodeImage),
		status:     make(map[string]v1alpha1.NodeImageStatus),
		content:    make(map[string]string),
		worked:     make(map[string]v1alpha1.NodeImage),
		cached:     make(map[string]v1alpha1.NodeImageStatus),
		changedAt:  make(map[string]time.Time),
		progressAt: make(map[string]time.Time),
		progressed: make(map[string]bool),
		stuck:      make(map[string]int),
		found:      make(map[string]string),
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
		Key: "team/" + name, Namespace: "team", UID: name, Generation: 1, Images: images,
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
		n.HeardAt = m.heardAt
		if n.Acknowledged {
			n.HeardAt = m.lastHeard(c.now)
		}
		n.Entries = make(map[string]Entry)
		for image, wanted := range m.spec {
			n.Entries[image] = Entry{Wanted: &wanted, ChangedAt: m.changedAt[image], ProgressAt: m.progressAt[image]}
		}
		for image, status := range m.cached {
			e := n.Entries[image]
			e.Status, e.ChangedAt, e.ProgressAt = &status, m.changedAt[image], m.progressAt[image]
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

// plan asks for the next step and writes it. It reports whether anything changed.
func (c *fakeCluster) plan() (Step, bool) {
	c.noteQuestions()
	c.noteComers()
	seen := c.state()
	step := Next(seen, c.limits)
	c.memory = step.Memory
	for _, name := range slices.Sorted(maps.Keys(step.Sets)) {
		c.machines[name].write(c, step.Sets[name])
	}
	if violation := cmp.Or(repeatedImage(step), c.boundsViolation(seen)); violation != "" && c.violation == "" {
		c.violation = violation + "\n" + c.String()
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
	if violation := c.localViolation(seen); violation != "" && c.violation == "" {
		c.violation = violation + "\n" + c.String()
	}
	return step, changed
}

// repeatedImage says which node a step gives an image twice, or out of order. The schema takes that.
func repeatedImage(step Step) string {
	for name, set := range step.Sets {
		for i := range set[:max(len(set)-1, 0)] {
			if set[i].Name >= set[i+1].Name {
				return fmt.Sprintf("%s is to have %s after %s", name, set[i+1].Name, set[i].Name)
			}
		}
	}
	return ""
}

func union[V any](a, b map[string]V) map[string]V {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// round has every agent do one turn and report it. It reports whether anything happened.
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

// upstreamPullers are the nodes that pull from the upstream at this moment, by image and platform.
func (c *fakeCluster) upstreamPullers() map[string][]string {
	fetching := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		for image, status := range m.status {
			if status.State == v1alpha1.ImagePulling && status.Source == v1alpha1.SourceUpstream {
				imageOnPlatform := image + " on " + m.node.Platform
				fetching[imageOnPlatform] = append(fetching[imageOnPlatform], name)
			}
		}
	}
	return fetching
}

// settle lets all agents work, and time pass, until nothing changes any more.
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
		c.now = latest(c.now, step.WakeAt)
	}
	t.Fatalf("it did not settle:\n%s", c)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// check asserts what must be true at every moment.
func (c *fakeCluster) check(t failer) {
	t.Helper()
	if c.violation != "" {
		t.Fatalf("%s", c.violation)
	}
	seedsOf := make(map[string][]string)
	resolvers := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		for image, entry := range m.spec {
			if entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault {
				imageOnPlatform := image + " on " + m.node.Platform
				seedsOf[imageOnPlatform] = append(seedsOf[imageOnPlatform], name)
				status, asks := m.status[image], entry.Digest == "" || entry.Request != ""
				if asks && (status.Digest == "" || status.Request != entry.Request) {
					resolvers[image] = append(resolvers[image], name)
				}
			} else if entry.Digest == "" && entry.RegistryPolicy == v1alpha1.RegistryPolicyMirror {
				t.Fatalf("%s is to get %s from the mirror without a digest", name, image)
			}
		}
	}
	for imageOnPlatform, nodes := range seedsOf {
		if len(nodes) > c.limits.UpstreamPullers {
			t.Fatalf("upstream for %s: %v", imageOnPlatform, nodes)
		}
	}
	for imageOnPlatform, nodes := range c.upstreamPullers() {
		if c.checkPulls && len(nodes) > c.limits.UpstreamPullers {
			t.Fatalf("upstream for %s: %v\n%s", imageOnPlatform, nodes, c)
		}
	}
	for image, nodes := range resolvers {
		if len(nodes) > 1 {
			t.Fatalf("%s is resolved by %v", image, nodes)
		}
	}
}

func (c *fakeCluster) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(c.prefetches)) {
		p := c.prefetches[key]
		fmt.Fprintf(&b, "%s@%d %v selector %v replicas %v resolved %v\n", key, p.Generation, p.Images, p.NodeSelector, p.Replicas, p.Resolved)
	}
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		fmt.Fprintf(&b, "%s %s ready=%v cordon=%v dead=%v offline=%v gen=%d/%d heard=%v\n", name, m.node.Platform, m.node.Ready,
			m.node.Unschedulable, m.dead, m.offline, m.cachedObserved, m.generation, c.now.Sub(m.heardAt))
		for _, image := range slices.Sorted(maps.Keys(union(keys(m.spec), keys(m.status)))) {
			e, s := m.spec[image], m.status[image]
			fmt.Fprintf(&b, "   %s wants %s %s %q; is %s %s %s %q %s tries %d; has %s\n", image, e.RegistryPolicy, e.Digest, e.Request,
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
		listed := slices.Clone(s.Nodes[i].KubeletImages)
		r.Shuffle(len(listed), func(a, b int) { listed[a], listed[b] = listed[b], listed[a] })
		s.Nodes[i].KubeletImages = listed
	}
	for i := range s.Prefetches {
		images := slices.Clone(s.Prefetches[i].Images)
		r.Shuffle(len(images), func(a, b int) { images[a], images[b] = images[b], images[a] })
		s.Prefetches[i].Images = images
	}
	return s
}

// nodesWithPolicy are the nodes, sorted, whose spec names an image with that policy.
func (c *fakeCluster) nodesWithPolicy(image string, policy v1alpha1.RegistryPolicy) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		if entry, ok := c.machines[name].spec[image]; ok && entry.RegistryPolicy == policy {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func (c *fakeCluster) seedsOf(image string) string {
	return c.nodesWithPolicy(image, v1alpha1.RegistryPolicyDefault)
}
func (c *fakeCluster) peersOf(image string) string {
	return c.nodesWithPolicy(image, v1alpha1.RegistryPolicyMirror)
}

// run lets some seconds pass, with all agents at work, and returns the last plan.
func (c *fakeCluster) run(t failer, seconds int) (step Step) {
	t.Helper()
	for range seconds {
		step, _ = c.plan()
		c.check(t)
		c.round()
	}
	return step
}

// planUntilStable plans until no spec changes, while no agent answers and no time passes.
func (c *fakeCluster) planUntilStable(t failer) Step {
	t.Helper()
	for range 10 {
		step, changed := c.plan()
		c.check(t)
		if !changed {
			return step
		}
	}
	t.Fatalf("the plan changes without a cause:\n%s", c)
	return Step{}
}
