// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestWhoBecomesTheSeed(t *testing.T) {
	const image, digest = "reg/a@sha256:d", "sha256:d"
	for _, c := range []struct {
		reason  string
		arrange func(cluster *fakeCluster)
		want    string
	}{
		{"the first name, where all else is equal", func(*fakeCluster) {}, "n000"},
		{"as many as the limit allows", func(cluster *fakeCluster) { cluster.limits.UpstreamPullers = 3 }, "n000 n001 n002"},
		{"one on each platform", func(cluster *fakeCluster) { cluster.addNode("arm", func(n *Node) { n.Platform = "linux/arm64" }) }, "arm n000"},
		{
			reason:  "the node whose kubelet lists it: nothing has to come at all",
			arrange: func(cluster *fakeCluster) { cluster.machines["n003"].node.KubeletImages = []string{image} },
			want:    "n003",
		},
		{"the node that has most images, since layers are shared", func(cluster *fakeCluster) {
			cluster.addPrefetch("other", "reg/o@sha256:o", "reg/p@sha256:p")
			cluster.makeHolder("n001", "reg/o@sha256:o", "sha256:o")
			cluster.makeHolder("n002", "reg/o@sha256:o", "sha256:o")
			cluster.makeHolder("n002", "reg/p@sha256:p", "sha256:p")
		}, "n002"},
		{"rather the seed of another image of the same prefetch", func(cluster *fakeCluster) {
			cluster.addPrefetch("other", "reg/o@sha256:o", "reg/p@sha256:p")
			cluster.makeHolder("n001", "reg/o@sha256:o", "sha256:o")
			cluster.makeHolder("n001", "reg/p@sha256:p", "sha256:p")
			cluster.machines["n003"].node.KubeletImages = []string{"reg/_@sha256:_"}
			cluster.addPrefetch("web", "reg/_@sha256:_", image)
		}, "n003"},
		{"the node whose agent reports it although it is no longer asked to have it", func(cluster *fakeCluster) {
			cluster.addPrefetch("other", "reg/o@sha256:o", "reg/p@sha256:p")
			cluster.makeHolder("n001", "reg/o@sha256:o", "sha256:o")
			cluster.makeHolder("n003", image, digest)
			delete(cluster.machines["n003"].spec, image)
		}, "n003"},
		{"the node with credentials: a team without them must not stop one that has them", func(cluster *fakeCluster) {
			cluster.machines["n004"].node.Labels = map[string]string{"team": "y"}
			p := cluster.addPrefetch("secret", image)
			p.NodeSelector = map[string]string{"team": "y"}
			p.PullSecrets = []v1alpha1.PullSecretSource{{Namespace: "y", Name: "key"}}
		}, "n004"},
		{"rather a node that has it and needs no credentials", func(cluster *fakeCluster) {
			cluster.machines["n003"].node.KubeletImages = []string{image}
			cluster.machines["n004"].node.Labels = map[string]string{"team": "y"}
			p := cluster.addPrefetch("secret", image)
			p.NodeSelector = map[string]string{"team": "y"}
			p.PullSecrets = []v1alpha1.PullSecretSource{{Namespace: "y", Name: "key"}}
		}, "n003"},
		{"never one that is not Ready", func(cluster *fakeCluster) { cluster.machines["n000"].node.Ready = false }, "n001"},
		{"never a cordoned one", func(cluster *fakeCluster) { cluster.machines["n000"].node.Unschedulable = true }, "n001"},
		{"never one under disk pressure", func(cluster *fakeCluster) { cluster.machines["n000"].node.DiskPressure = true }, "n001"},
		{"never one whose runtime is not supported", func(cluster *fakeCluster) { cluster.machines["n000"].node.Unsupported = true }, "n001"},
		{"nor one whose runtime does not answer", func(cluster *fakeCluster) { cluster.machines["n000"].node.RuntimeDown = true }, "n001"},
		{"never one whose agent is silent", func(cluster *fakeCluster) {
			m := cluster.machines["n000"]
			m.generation, m.heardAt = 1, cluster.now.Add(-cluster.limits.AgentTimeout)
		}, "n001"},
		{"a node whose agent has not answered yet, within AgentTimeout", func(cluster *fakeCluster) {
			m := cluster.machines["n000"]
			m.generation, m.heardAt = 1, cluster.now.Add(-cluster.limits.AgentTimeout+1)
		}, "n000"},
		{"none, where a node has it", func(cluster *fakeCluster) { cluster.makeHolder("n004", image, digest) }, ""},
		{"one after all, where the only holder is not Ready", func(cluster *fakeCluster) {
			cluster.makeHolder("n004", image, digest)
			cluster.machines["n004"].node.Ready = false
		}, "n000"},
		{"the platform without a holder has its seed", func(cluster *fakeCluster) {
			cluster.makeHolder("n004", image, digest)
			cluster.addNode("arm", func(n *Node) { n.Platform = "linux/arm64" })
		}, "arm"},
		{
			reason:  "a node with another digest, which is no holder, but has the layers that did not change",
			arrange: func(cluster *fakeCluster) { cluster.makeHolder("n004", image, "sha256:old") },
			want:    "n004",
		},
		{"the node that has received most from following the last seed", func(cluster *fakeCluster) {
			for name, bytes := range map[string]int64{"n001": 10, "n003": 30, "n002": 20} {
				cluster.makeHolder(name, image, digest)
				s := cluster.machines[name].cached[image]
				s.State, s.PulledBytes = v1alpha1.ImagePulling, bytes
				cluster.machines[name].cached[image] = s
			}
		}, "n003"},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(5)
			cluster.addPrefetch("web", image)
			c.arrange(cluster)
			cluster.plan()
			cluster.check(t)
			if got := cluster.seedsOf(image); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// makeHolder has the spec of a node ask for an image, and its agent report it.
func (c *fakeCluster) makeHolder(name, image, digest string) {
	m, retries := c.machines[name], int32(3)
	m.spec[image] = v1alpha1.NodeImage{Name: image, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyMirror,
		ImageDownloadRetryLimit: &retries, Retention: v1alpha1.RetentionPinned}
	m.content[image] = digest
	m.generation, m.observed = m.generation+1, m.generation+1
	m.status[image] = v1alpha1.NodeImageStatus{Name: image, State: v1alpha1.ImagePresent, Digest: digest, Source: v1alpha1.SourceMirror}
	m.worked[image] = m.spec[image]
	c.report(m)
}

func TestImagesOfOnePrefetchShareTheirSeed(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(5)
	cluster.machines["n003"].node.KubeletImages = []string{"reg/a:1"}
	cluster.addPrefetch("web", "reg/a:1", "reg/b:1", "reg/c:1")
	cluster.plan()
	for _, image := range []string{"reg/a:1", "reg/b:1", "reg/c:1"} {
		if got := cluster.seedsOf(image); got != "n003" {
			t.Errorf("the seed of %s is %q", image, got)
		}
	}
}

func TestSeedIsReplaced(t *testing.T) {
	limits := DefaultLimits()
	for _, c := range []struct {
		reason string
		fail   func(cluster *fakeCluster, m *machine)
		within time.Duration
	}{
		{
			reason: "when its node is gone, at once",
			fail:   func(cluster *fakeCluster, m *machine) { delete(cluster.machines, m.node.Name) },
			within: 0,
		},
		{
			reason: "when its node is not Ready, once its agent has seen the demotion",
			fail:   func(_ *fakeCluster, m *machine) { m.node.Ready = false },
			within: 2 * time.Second,
		},
		{
			reason: "when its node is not Ready and its agent is dead, after AgentTimeout",
			fail:   func(_ *fakeCluster, m *machine) { m.node.Ready, m.dead = false, true },
			within: limits.AgentTimeout + 3*time.Second,
		},
		{
			reason: "when its runtime does not answer any more, once its agent has seen the demotion",
			fail:   func(_ *fakeCluster, m *machine) { m.hung, m.node.RuntimeDown = true, true },
			within: 2 * time.Second,
		},
		{
			reason: "when its pull fails for good",
			fail:   func(_ *fakeCluster, m *machine) { m.offline = true },
			within: 10 * time.Second,
		},
		{
			reason: "when it makes no progress, after SeedTimeout",
			fail:   func(_ *fakeCluster, m *machine) { m.hung = true },
			within: limits.SeedTimeout + 5*time.Second,
		},
		{
			reason: "when it tries again and again and nothing comes, after SeedTimeout as well",
			fail:   func(_ *fakeCluster, m *machine) { m.hung, m.retryTurns = true, 45 },
			within: limits.SeedTimeout + 5*time.Second,
		},
		{
			reason: "when its agent dies in the middle, once a heartbeat is late by AgentTimeout",
			fail:   func(_ *fakeCluster, m *machine) { m.dead = true },
			within: v1alpha1.HeartbeatInterval + limits.AgentTimeout + 5*time.Second,
		},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			cluster.addPrefetch("web", "reg/a:1")
			cluster.run(t, 2)
			if got := cluster.seedsOf("reg/a:1"); got != "n000" {
				t.Fatalf("%q is the seed", got)
			}
			began := cluster.now
			c.fail(cluster, cluster.machines["n000"])
			for cluster.seedsOf("reg/a:1") != "n001" {
				before := cluster.seedsOf("reg/a:1")
				_, changed := cluster.plan()
				cluster.check(t)
				if after := cluster.seedsOf("reg/a:1"); before != "" && after != "" && before != after && cluster.machines[before] != nil {
					t.Fatalf("%s was demoted and %s promoted in one step", before, after)
				}
				if cluster.round(); cluster.now.Sub(began) > 10*time.Minute && !changed {
					t.Fatalf("it never was\n%s", cluster)
				}
			}
			if took := cluster.now.Sub(began) - time.Second; took > c.within {
				t.Errorf("it took %v, not %v", took, c.within)
			}
			cluster.run(t, 60) // one that hangs may try for ever
			for _, name := range []string{"n001", "n002"} {
				if cluster.machines[name].content["reg/a:1"] == "" {
					t.Errorf("%s was never served", name)
				}
			}
		})
	}
}

func TestPlanWakesForEachTimeout(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	cluster.addPrefetch("web", "reg/a:1")
	cluster.plan()
	step := cluster.planUntilStable(t)
	if want := cluster.now.Add(answerTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("a node that has just got its entry: wake at %v, want %v", step.WakeAt, want)
	}
	cluster.now = cluster.now.Add(answerTimeout)
	step = cluster.planUntilStable(t)
	if want := cluster.now.Add(cluster.limits.AgentTimeout - answerTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("an agent that says nothing: wake at %v, want %v", step.WakeAt, want)
	}
	cluster.round()
	cluster.plan()
	cluster.round()
	seed := cluster.machines["n000"]
	if step, want := cluster.planUntilStable(t), seed.heardAt.Add(v1alpha1.HeartbeatInterval+cluster.limits.AgentTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("an agent that pulls: wake at %v, want %v", step.WakeAt, want)
	}
	cluster.now = cluster.now.Add(cluster.limits.SeedTimeout - time.Minute)
	if step, want := cluster.planUntilStable(t), seed.progressAt["reg/a:1"].Add(cluster.limits.SeedTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("a seed that makes no progress: wake at %v, want %v", step.WakeAt, want)
	}
	cluster.settle(t)
	if step := cluster.planUntilStable(t); !step.WakeAt.IsZero() {
		t.Errorf("everything is done, and it wakes at %v", step.WakeAt)
	}
}

func TestFailingNodesAreTriedOnceEachBeforeAnyoneTwice(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(24)
	var want []string
	for i := range 20 {
		name := fmt.Sprintf("n%03d", i)
		cluster.machines[name].offline = true
		want = append(want, name)
	}
	cluster.addPrefetch("web", "reg/a:1")
	var tried []string
	for range 300 {
		cluster.run(t, 1)
		if seed := cluster.seedsOf("reg/a:1"); seed != "" && (len(tried) == 0 || tried[len(tried)-1] != seed) {
			tried = append(tried, seed)
		}
	}
	if got := strings.Join(tried, " "); got != strings.Join(append(want, "n020"), " ") {
		t.Errorf("tried %s", got)
	}
	cluster.settle(t)
	cluster.checkServed(t)
}

func TestFailedSeedStaysVisibleUntilAnotherCanTakeOver(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(1)
	cluster.machines["n000"].offline = true
	cluster.addPrefetch("web", "reg/a:1")
	cluster.run(t, 20)
	if m := cluster.machines["n000"]; m.status["reg/a:1"].State != v1alpha1.ImageFailed || cluster.seedsOf("reg/a:1") != "n000" {
		t.Fatalf("no entry shows why nothing moves:\n%s", cluster)
	}
	cluster.machines["n000"].offline = false
	cluster.settle(t) // after a backoff it tries again by itself
	cluster.checkServed(t)
}

func TestSeedThatIsDoneIsASeedNoLonger(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.addPrefetch("web", "reg/a:1")
	cluster.settle(t)
	if got := cluster.seedsOf("reg/a:1"); got != "" {
		t.Fatalf("%q would go upstream if its image were deleted", got)
	}
	clear(cluster.machines["n000"].content)
	cluster.settle(t)
	cluster.checkServed(t)
	if got := cluster.machines["n000"].status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
		t.Errorf("it came again from %s", got)
	}
}

func TestSeedOfADigestThatIsSupersededStops(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	cluster.addNode("arm", func(n *Node) { n.Platform = "linux/arm64" })
	p := cluster.addPrefetch("web", "reg/a:1")
	p.Resolved["reg/a:1"] = Resolved{Digest: "sha256:first"}
	cluster.machines["n001"].node.KubeletImages = []string{"reg/a:1"}
	for _, m := range cluster.machines {
		m.hung = true
	}
	cluster.run(t, 2)
	if got := cluster.seedsOf("reg/a:1"); got != "arm n001" {
		t.Fatalf("%q are seeds", got)
	}
	p.Refresh = "2"
	cluster.tags["reg/a:1"] = "sha256:second"
	cluster.planUntilStable(t)
	cluster.round() // one of them answers
	cluster.planUntilStable(t)
	for _, name := range []string{"arm", "n001"} {
		if e, ok := cluster.machines[name].spec["reg/a:1"]; ok && e.Digest == "sha256:first" {
			t.Errorf("%s goes on pulling what no prefetch wants any more: %+v", name, e)
		}
	}
}

func TestCordonedSeedMayFinish(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.addPrefetch("web", "reg/a:1")
	cluster.run(t, 2)
	cluster.machines["n000"].node.Unschedulable = true
	cluster.settle(t)
	cluster.checkServed(t)
	if got := cluster.machines["n000"].content["reg/a:1"]; got == "" {
		t.Error("the pull was thrown away")
	}
	for _, name := range []string{"n001", "n002"} {
		if got := cluster.machines[name].status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
			t.Errorf("%s got it from %s", name, got)
		}
	}
}

// A seed of another image of the prefetch has the layers that they share. A peer has them from the
// mirror, as every node can.
func TestASeedOfASiblingComesFirst(t *testing.T) {
	const sibling, image = "reg/a@sha256:a", "reg/b@sha256:b"
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	has := func(policy v1alpha1.RegistryPolicy) map[string]Entry {
		return map[string]Entry{sibling: {
			Wanted:    &v1alpha1.NodeImage{Name: sibling, Digest: "sha256:a", RegistryPolicy: policy, Retention: v1alpha1.RetentionPinned},
			Status:    &v1alpha1.NodeImageStatus{Name: sibling, Digest: "sha256:a", State: v1alpha1.ImagePresent},
			ChangedAt: now, ProgressAt: now,
		}}
	}
	state := State{Now: now, Prefetches: []Prefetch{{Key: "team/x", UID: "x", Images: []string{sibling, image}}}, Nodes: []Node{
		{Name: "n0", Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: has(v1alpha1.RegistryPolicyMirror)},
		{Name: "n1", Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: has(v1alpha1.RegistryPolicyDefault)},
	}}
	for name, set := range Next(state, DefaultLimits()).Sets {
		for _, entry := range set {
			if entry.Name == image && entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault && name != "n1" {
				t.Errorf("%s is the seed, want n1", name)
			}
		}
	}
	if set := Next(state, DefaultLimits()).Sets["n1"]; len(set) != 2 {
		t.Errorf("n1 gets %+v, want both images", set)
	}
}

// Nobody could tell afterwards whether a seed had begun that was demoted before its agent acknowledged
// its promotion.
func TestASeedIsNotReplacedBeforeItsAgentHasSeenThatItIsOne(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		reason       string
		acknowledged bool
		want         string
	}{
		{"its node is gone, and its agent may have begun", false, "n000"},
		{"its node is gone, and its agent has seen the promotion", true, ""}, // and then another, once this is written
	} {
		promoted := peerEntry(now, 0, 9)
		promoted.Wanted.RegistryPolicy = v1alpha1.RegistryPolicyDefault
		state := stateOf(now, promoted, nil)
		state.Nodes[0].Ready, state.Nodes[0].Acknowledged, state.Nodes[0].HeardAt = false, tt.acknowledged, now
		step := Next(state, DefaultLimits())
		seeds := map[string]string{"n000": waveImage}
		for name, set := range step.Sets {
			delete(seeds, name)
			for _, entry := range set {
				if entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault {
					seeds[name] = entry.Name
				}
			}
		}
		if _, stays := seeds["n000"]; stays != (tt.want == "n000") || len(seeds) > 1 {
			t.Errorf("%s: the seeds are %v", tt.reason, seeds)
		}
	}
}
