// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What is checked here is worked out from the cluster: from its nodes, from what its registry
// has answered, and from what its agents report. Nothing of the plan is asked, so that a
// plan which errs is not believed.

// question is that of a prefetch for what a tag means: only what the registry answers after
// it was asked counts.
type question struct {
	refresh  string
	answered int // how many answers there were before
}

// noteQuestions notes which tags are to be asked for again.
func (c *fakeCluster) noteQuestions() {
	listed := make(map[string]bool)
	for key, p := range c.prefetches {
		maps.DeleteFunc(p.Resolved, func(image string, _ Resolved) bool { return !slices.Contains(p.Images, image) }) // as its status does
		for _, image := range p.Images {
			id := key + " " + image
			listed[id] = true
			if last, asked := c.questions[id]; !asked || last.refresh != p.Refresh {
				c.questions[id] = question{p.Refresh, len(c.answers[image])}
			}
		}
	}
	maps.DeleteFunc(c.questions, func(id string, _ question) bool { return !listed[id] }) // listed again, it is asked for again
}

// wantedOn reports whether a prefetch waits for a node, as Kubernetes would place a Pod of
// its selector and tolerations there.
func wantedOn(p *Prefetch, n *Node) bool {
	if !strings.HasPrefix(n.Platform, "linux/") || !n.Ready || n.Uncovered || n.Unsupported || !labels.SelectorFromSet(p.NodeSelector).Matches(labels.Set(n.Labels)) {
		return false
	}
	taints := slices.Clone(n.Taints)
	if n.Unschedulable {
		taints = append(taints, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	return !slices.ContainsFunc(taints, func(taint corev1.Taint) bool {
		return taint.Effect != corev1.TaintEffectPreferNoSchedule && !slices.ContainsFunc(p.Tolerations, func(t corev1.Toleration) bool {
			return t.ToleratesTaint(logr.Discard(), &taint, false)
		})
	})
}

// checkServed asserts that every node that a prefetch is for, or as many of them as it
// wants, have what the registry says its images are, and all the same.
func (c *fakeCluster) checkServed(t failer) {
	t.Helper()
	c.noteQuestions()
	digests := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(c.prefetches)) {
		p := c.prefetches[key]
		served, matching := 0, 0
		var lacking []string
		for _, name := range slices.Sorted(maps.Keys(c.machines)) {
			m := c.machines[name]
			if !wantedOn(p, &m.node) {
				continue
			}
			matching++
			if lacks := c.lacks(m, p, digests); lacks != "" {
				lacking = append(lacking, lacks)
			} else {
				served++
			}
		}
		want := matching
		if p.Replicas != nil {
			want = min(matching, int(*p.Replicas))
		}
		if served < want {
			t.Fatalf("%s is on %d nodes of %d: %s\n%s", key, served, want, strings.Join(lacking, "; "), c)
		}
	}
}

// lacks says what of a prefetch's images a node does not have, or does not know that it
// shall keep. digests are those of the images on the nodes before.
func (c *fakeCluster) lacks(m *machine, p *Prefetch, digests map[string]string) string {
	for _, image := range p.Images {
		got, asked, digest := m.status[image], m.spec[image], m.content[image]
		switch {
		case digest == "" || got.State != v1alpha1.ImagePresent || got.Digest != digest || asked.Digest != digest:
			return fmt.Sprintf("%s has %s as %q", m.node.Name, image, digest)
		case !slices.Contains(c.meanings(image), digest):
			return fmt.Sprintf("%s has %s as %q, which means %q", m.node.Name, image, digest, c.meanings(image))
		case digests[image] != "" && digests[image] != digest:
			return fmt.Sprintf("%s has %s as %q, others as %q", m.node.Name, image, digest, digests[image])
		}
		digests[image] = digest
	}
	return ""
}

// meanings are the digests that an image may have: its own, what the registry has answered
// since the last prefetch asked that has a node to ask from, or what all nodes have.
func (c *fakeCluster) meanings(image string) []string {
	if _, digest, pinned := strings.Cut(image, "@"); pinned {
		return []string{digest}
	}
	first := 0
	for key, p := range c.prefetches {
		if slices.Contains(p.Images, image) && slices.ContainsFunc(c.nodes(), func(n *Node) bool { return wantedOn(p, n) }) {
			first = max(first, c.questions[key+" "+image].answered)
		}
	}
	meanings := slices.Clone(c.answers[image][first:])
	if digest := c.imported[image]; digest != "" {
		meanings = append(meanings, digest)
	}
	return meanings
}

func (c *fakeCluster) nodes() (nodes []*Node) {
	for _, m := range c.machines {
		nodes = append(nodes, &m.node)
	}
	return nodes
}

// boundsViolation says which of the two bounds on pulls a plan has broken, given what the
// controller saw before it. It goes by what agents report, and counts only those nodes for
// pulling that nobody could take for anything else, and everybody for a source who might be
// one; so what it says is so.
func (c *fakeCluster) boundsViolation(seen State) string {
	pulls := newPullCount(seen, c.state(), c.limits)
	for _, key := range slices.Sorted(maps.Keys(pulls.groups)) {
		g := pulls.groups[key]
		if g.sources == 0 && c.isOnlyOnNodes(g.image) {
			g.sources = 1 // somebody has to look
		}
		most := float64(c.limits.Fanout) * (g.sources + min(g.shares, 3*g.sources))
		if g.admitted > 0 && float64(g.admitted+g.receiving) > most {
			return fmt.Sprintf("%d begin to pull %s and %d receive it, of %v", g.admitted, key, g.receiving, most)
		}
	}
	if limit := c.limits.MaxConcurrentPulls; pulls.begun > 0 && limit > 0 && pulls.begun+pulls.underWay > limit {
		return fmt.Sprintf("%d pulls begin and %d are under way, of %d", pulls.begun, pulls.underWay, limit)
	}
	return ""
}

// pullCount is what a plan leads to: over all images, and for each content of an image
// on each platform.
type pullCount struct {
	begun, underWay int
	groups          map[string]*groupCount
}

// groupCount is the nodes that can serve each other.
type groupCount struct {
	image string
	// sources have the image or are the seed that is followed; shares are what those
	// have that receive it.
	sources, shares float64
	// admitted begin with this plan; receiving have begun before.
	admitted, receiving int
}

func newPullCount(before, after State, limits Limits) *pullCount {
	pulls := &pullCount{groups: make(map[string]*groupCount)}
	old := make(map[string]Node)
	for _, n := range before.Nodes {
		old[n.Name] = n
	}
	for _, n := range after.Nodes {
		for image, entry := range n.Entries {
			pulls.add(after.Now, n, image, old[n.Name].Entries[image], entry, limits.FollowSeed)
		}
	}
	return pulls
}

func (pulls *pullCount) add(now time.Time, n Node, image string, before, entry Entry, followSeed bool) {
	was, is := before.Wanted, entry.Wanted
	status := v1alpha1.NodeImageStatus{}
	if entry.Status != nil {
		status = *entry.Status
	}
	has := status.State == v1alpha1.ImagePresent
	if has {
		pulls.group(n, image, status.Digest).sources++
	}
	if is == nil || is.RegistryPolicy == v1alpha1.RegistryPolicyLocal {
		return // nothing is fetched
	}
	if was != nil && was.RegistryPolicy == v1alpha1.RegistryPolicyLocal {
		was = nil
	}
	seed := is.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	receives := was != nil && busy(now, n, before)
	if receives {
		pulls.underWay++
	} else if was == nil && !has {
		pulls.begun++
	}
	g := pulls.group(n, image, status.Digest)
	if seed {
		if followSeed && status.State == v1alpha1.ImagePulling && status.SizeBytes > 0 {
			g.sources++
		}
		return
	}
	if followSeed && was != nil && status.SizeBytes > 0 && status.Digest == is.Digest && !has {
		g.shares += min(float64(status.PulledBytes)/float64(status.SizeBytes), 1)
	}
	listed := slices.ContainsFunc(n.KubeletImages, func(name string) bool { return strings.HasSuffix(name, "@"+is.Digest) })
	switch {
	case has && status.Digest == is.Digest, listed:
	case was == nil, was.RegistryPolicy == v1alpha1.RegistryPolicyMirror && was.Digest != is.Digest:
		pulls.group(n, image, is.Digest).admitted++
	case receives && (entry.Status == nil || status.Digest == is.Digest):
		pulls.group(n, image, is.Digest).receiving++
	}
}

// busy reports whether a node receives something of an image, by its own words of the last
// 10 s, or was told so lately to pull it that nothing can have gone wrong.
func busy(now time.Time, n Node, entry Entry) bool {
	within := func(d time.Duration) bool { return entry.ProgressAt.After(now.Add(-d)) }
	heard := n.Acknowledged || n.HeardAt.After(now.Add(-10*time.Second))
	if !n.Ready || n.RuntimeDown || n.Unsupported || !heard {
		return false
	}
	switch status := entry.Status; {
	case status == nil:
		return within(5 * time.Second)
	case status.Reason != "" || status.Attempts == 0:
		return false
	case status.State == v1alpha1.ImagePulling:
		return status.PulledBytes > 0 && within(10*time.Second) || within(5*time.Second)
	default:
		return false
	}
}

func (pulls *pullCount) group(n Node, image, digest string) *groupCount {
	contentOnPlatform := fmt.Sprintf("%s (%s) on %s", image, digest, n.Platform)
	if pulls.groups[contentOnPlatform] == nil {
		pulls.groups[contentOnPlatform] = &groupCount{image: image}
	}
	return pulls.groups[contentOnPlatform]
}
