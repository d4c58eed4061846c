// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// imported is a cluster of three nodes that have images of these digests under the name "local/a:1",
// which no registry knows, and a prefetch of it.
func imported(digests ...string) (*fakeCluster, *Prefetch) {
	cluster := newFakeCluster()
	cluster.addNodes(len(digests))
	p := cluster.addPrefetch("x", "local/a:1")
	p.NodeLocal = p.Images
	delete(cluster.tags, "local/a:1")
	for i, digest := range digests {
		if digest != "" {
			cluster.machines[nodeName(i)].content["local/a:1"] = digest
		}
	}
	return cluster, p
}

func nodeName(i int) string { return []string{"n000", "n001", "n002", "n003"}[i] }

// specOf is what the spec of a node asks for an image, as "policy digest".
func (c *fakeCluster) specOf(node, image string) string {
	entry, ok := c.machines[node].spec[image]
	if !ok {
		return ""
	}
	return string(entry.RegistryPolicy) + " " + entry.Digest
}

func TestATagOfANodeLocalImageIsWhatAllNodesHave(t *testing.T) {
	cluster, p := imported("sha256:a", "sha256:a", "sha256:a")
	step := cluster.run(t, 20)
	if got := step.Prefetches[p.Key].Digests["local/a:1"].Digest; got != "sha256:a" {
		t.Errorf("it is resolved to %q", got)
	}
	for i := range 3 {
		if got := cluster.specOf(nodeName(i), "local/a:1"); got != "Mirror sha256:a" {
			t.Errorf("%s is to get %q", nodeName(i), got)
		}
	}
	if cluster.seedsOf("local/a:1") != "" || len(cluster.answers) > 0 {
		t.Errorf("the registry was asked: %v", cluster.answers)
	}

	// From then on it is an image like any other: a node that joins gets it from the mirror.
	cluster.addNode("n003")
	cluster.settle(t)
	if m := cluster.machines["n003"]; m.content["local/a:1"] != "sha256:a" || m.status["local/a:1"].Source != v1alpha1.SourceMirror {
		t.Errorf("the node that joined has %v", m.status["local/a:1"])
	}
}

func TestNodesThatDisagreeAboutANodeLocalImage(t *testing.T) {
	cluster, p := imported("sha256:a", "sha256:b", "sha256:a")
	step := cluster.run(t, 20)
	outcome := step.Prefetches[p.Key]
	want := Disagreement{Nodes: [2]string{"n000", "n001"}, Digests: [2]string{"sha256:a", "sha256:b"}}
	if got := outcome.Undecided["local/a:1"]; outcome.Digests["local/a:1"].Digest != "" || got == nil || *got != want {
		t.Errorf("%+v, want no digest, and %+v", outcome, want)
	}
	if got := cluster.machines["n001"].content["local/a:1"]; got != "sha256:b" {
		t.Errorf("the node has %q now: nobody knows which is right", got)
	}

	cluster.machines["n001"].content["local/a:1"] = "sha256:a" // it is imported there
	step = cluster.run(t, 20)
	outcome = step.Prefetches[p.Key]
	if outcome.Digests["local/a:1"].Digest != "sha256:a" || len(outcome.Undecided) > 0 {
		t.Errorf("once all have the same: %+v", outcome)
	}
}

func TestANodeLocalImageThatSomeNodeLacksIsNotResolved(t *testing.T) {
	cluster, p := imported("sha256:a", "", "sha256:a")
	step := cluster.run(t, 20)
	if got := step.Prefetches[p.Key].Digests["local/a:1"].Digest; got != "" {
		t.Errorf("it is resolved to %q", got)
	}
	if got := cluster.machines["n001"].status["local/a:1"]; got.Reason != v1alpha1.ReasonImageNotOnNode {
		t.Errorf("the node says %+v", got)
	}
	cluster.machines["n001"].content["local/a:1"] = "sha256:a"
	if got := cluster.run(t, 20).Prefetches[p.Key].Digests["local/a:1"].Digest; got != "sha256:a" {
		t.Errorf("once it is imported there, it is resolved to %q", got)
	}
}

func TestWhoseWordCountsAboutANodeLocalImage(t *testing.T) {
	for _, c := range []struct {
		reason string
		change func(*fakeCluster, *Prefetch)
		want   string
	}{
		{"a node without an answer is waited for", func(c *fakeCluster, _ *Prefetch) { c.machines["n001"].dead = true }, ""},
		{"a node that is not Ready is not desired", func(c *fakeCluster, _ *Prefetch) { c.machines["n001"].node.Ready = false }, "sha256:a"},
		{"a node whose runtime is down says nothing", func(c *fakeCluster, _ *Prefetch) { c.machines["n001"].node.RuntimeDown = true }, "sha256:a"},
		{"what a node has that is not selected does not matter", func(c *fakeCluster, p *Prefetch) {
			c.machines["n001"].content["local/a:1"] = "sha256:b"
			p.NodeSelector = map[string]string{"disk": "ssd"}
			c.machines["n000"].node.Labels, c.machines["n002"].node.Labels = p.NodeSelector, p.NodeSelector
		}, "sha256:a"},
		{"a node under disk pressure is not desired", func(c *fakeCluster, _ *Prefetch) { c.machines["n001"].node.DiskPressure = true }, "sha256:a"},
		{"no node has it", func(c *fakeCluster, _ *Prefetch) {
			for _, m := range c.machines {
				clear(m.content)
			}
		}, ""},
		{"on a refresh the registry is asked, which does not know it", func(_ *fakeCluster, p *Prefetch) { p.Refresh = "1" }, ""},
		{"on a refresh the registry is asked, and knows it", func(c *fakeCluster, p *Prefetch) {
			p.Refresh, c.tags["local/a:1"] = "1", "sha256:upstream"
		}, "sha256:upstream"},
		{"no administrator has listed it", func(_ *fakeCluster, p *Prefetch) { p.NodeLocal = nil }, ""},
		{"another prefetch has recorded it", func(c *fakeCluster, _ *Prefetch) {
			c.addPrefetch("y", "local/a:1").Resolved["local/a:1"] = Resolved{Digest: "sha256:recorded"}
			delete(c.tags, "local/a:1")
		}, "sha256:recorded"},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster, p := imported("sha256:a", "sha256:a", "sha256:a")
			c.change(cluster, p)
			step := cluster.run(t, 20)
			if got := step.Prefetches[p.Key].Digests["local/a:1"].Digest; got != c.want {
				t.Errorf("it is resolved to %q, want %q\n%s", got, c.want, cluster)
			}
		})
	}
}

func TestASilentNodeSaysNothingAboutANodeLocalImage(t *testing.T) {
	cluster, p := imported("sha256:a", "sha256:a", "sha256:a")
	cluster.machines["n001"].dead = true
	step := cluster.run(t, int(2*cluster.limits.AgentTimeout.Seconds()))
	if got := step.Prefetches[p.Key].Digests["local/a:1"].Digest; got != "sha256:a" {
		t.Errorf("it is resolved to %q", got)
	}
}

func TestARestartInTheMiddleOfAnAgreementChangesNothing(t *testing.T) {
	cluster, p := imported("sha256:a", "sha256:a", "sha256:a")
	for range 20 {
		step, _ := cluster.plan()
		if step.Prefetches[p.Key].Digests["local/a:1"].Digest != "" {
			break
		}
		cluster.round()
	}
	// The specs are written; the status of the prefetch, which has the digest, is not.
	clear(p.Resolved)
	step, _ := cluster.plan()
	if got := step.Prefetches[p.Key].Digests["local/a:1"].Digest; got != "sha256:a" {
		t.Errorf("then it is resolved to %q", got)
	}
}

func TestARefreshOfAnotherPrefetchDoesNotKeepNodesFromBeingAsked(t *testing.T) {
	cluster, p := imported("sha256:a")
	other := cluster.addPrefetch("other", "local/a:1")
	other.Refresh = "1"
	delete(cluster.tags, "local/a:1")
	step := cluster.run(t, 60)
	if got := step.Prefetches[p.Key].Digests["local/a:1"].Digest; got != "sha256:a" {
		t.Errorf("it is resolved to %q\n%s", got, cluster)
	}
	if got := step.Prefetches[other.Key].Digests["local/a:1"].Digest; got != "" {
		t.Errorf("the registry, which does not know it, has said %q", got)
	}
}

func TestANodeThatJoinsIsNotAskedWhatItHas(t *testing.T) {
	cluster, p := imported("sha256:a", "", "sha256:a")
	cluster.run(t, 20)
	cluster.addNode("n003")
	cluster.run(t, 20)
	if got := cluster.specOf("n003", "local/a:1"); got != "" {
		t.Errorf("it is to get %q", got)
	}
	cluster.machines["n001"].content["local/a:1"] = "sha256:a"
	cluster.settle(t)
	if got := p.Resolved["local/a:1"].Digest; got != "sha256:a" || cluster.machines["n003"].content["local/a:1"] != got {
		t.Errorf("once the others have it, it is resolved to %q\n%s", got, cluster)
	}
}

func TestNodesOfALaterPrefetchAreAskedToo(t *testing.T) {
	for _, c := range []struct {
		has   string
		taken bool
	}{{"sha256:a", true}, {"", true}, {"sha256:b", false}} {
		cluster, first := imported("sha256:a", c.has)
		first.NodeSelector = map[string]string{"of": "first"}
		cluster.machines["n000"].node.Labels = first.NodeSelector
		cluster.run(t, 20)
		later := cluster.addPrefetch("later", "local/a:1")
		later.NodeLocal, later.NodeSelector = later.Images, map[string]string{"of": "later"}
		cluster.machines["n001"].node.Labels = later.NodeSelector
		delete(cluster.tags, "local/a:1")
		outcome := cluster.run(t, 30).Prefetches[later.Key]
		found := outcome.Undecided["local/a:1"]
		if taken := outcome.Digests["local/a:1"].Digest == "sha256:a"; taken != c.taken || (found == nil) != c.taken {
			t.Errorf("its node has %q: it goes by what the first has %t, and %+v", c.has, taken, found)
		}
		want := Disagreement{Nodes: [2]string{"n000", "n001"}, Digests: [2]string{"sha256:a", "sha256:b"}}
		if !c.taken && (found == nil || *found != want || cluster.machines["n001"].content["local/a:1"] != "sha256:b") {
			t.Errorf("%+v, want %+v, and the node as it is\n%s", found, want, cluster)
		}
		if c.taken && cluster.machines["n001"].content["local/a:1"] != "sha256:a" {
			t.Errorf("its node had %q\n%s", c.has, cluster)
		}
	}
}

func TestNoRegistryIsAskedForTheContentOfANodeLocalImage(t *testing.T) {
	cluster, _ := imported("sha256:a", "sha256:a")
	cluster.run(t, 20)
	cluster.addNode("n002").cutOff = true
	for range 600 {
		cluster.run(t, 1)
		if seeds := cluster.seedsOf("local/a:1"); seeds != "" {
			t.Fatalf("%s may use the registry", seeds)
		}
	}
}

func TestANodeThatIsAskedWhatItHasGetsNoSecrets(t *testing.T) {
	cluster, p := imported("sha256:a", "")
	p.PullSecrets = []v1alpha1.PullSecretSource{acceptedSecret}
	cluster.run(t, 20)
	for name, m := range cluster.machines {
		if entry := m.spec["local/a:1"]; entry.RegistryPolicy != v1alpha1.RegistryPolicyLocal || len(entry.ImagePullSecrets) > 0 {
			t.Errorf("%s has %+v", name, entry)
		}
	}
	p.Retention = v1alpha1.RetentionBestEffort
	cluster.run(t, 5)
	if entry := cluster.machines["n000"].spec["local/a:1"]; entry.Retention != p.Retention {
		t.Errorf("it is kept as %s", entry.Retention)
	}
}

func TestNodesThatReplaceAllOthersAreAskedWhatTheyHave(t *testing.T) {
	cluster, p := imported("sha256:a", "")
	cluster.run(t, 20)
	for _, name := range []string{"n002", "n003"} {
		cluster.addNode(name).content["local/a:1"] = "sha256:b"
	}
	cluster.run(t, 20)
	delete(cluster.machines, "n000")
	delete(cluster.machines, "n001")
	cluster.settle(t)
	if got := p.Resolved["local/a:1"].Digest; got != "sha256:b" || cluster.peersOf("local/a:1") != "n002 n003" {
		t.Errorf("it is resolved to %q\n%s", got, cluster)
	}
}

func TestANodeLocalImageThatNoNodeServesIsLookedFor(t *testing.T) {
	for _, c := range []struct {
		reason string
		change func(*fakeCluster)
	}{
		{"the nodes that had it are gone", func(c *fakeCluster) {
			clear(c.machines)
			for _, name := range []string{"n010", "n011", "n012", "n013", "n014", "n015"} {
				c.addNode(name)
			}
		}},
		{"they have another platform", func(c *fakeCluster) {
			for _, name := range []string{"n010", "n011", "n012", "n013", "n014", "n015"} {
				c.addNode(name, func(n *Node) { n.Platform = "linux/arm64" })
			}
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster, p := imported("sha256:a")
			cluster.run(t, 20)
			c.change(cluster)
			cluster.machines["n015"].content["local/a:1"] = "sha256:a" // the others have nothing
			cluster.settle(t)
			for name, m := range cluster.machines {
				if got := m.status["local/a:1"]; got.State != v1alpha1.ImagePresent || got.Digest != p.Resolved["local/a:1"].Digest {
					t.Errorf("%s has %+v", name, got)
				}
			}
		})
	}
}

func TestANodeThatLacksANodeLocalImageWhichNobodyServesIsNotToldAgainAndAgain(t *testing.T) {
	cluster, _ := imported("sha256:a")
	cluster.run(t, 20)
	clear(cluster.machines)
	cluster.addNodes(3)
	clear(cluster.writes)
	cluster.run(t, 600)
	for _, name := range []string{"n000", "n001", "n002"} {
		if writes, reason := cluster.writes[name+" local/a:1"], cluster.machines[name].status["local/a:1"].Reason; writes != 1 || reason != v1alpha1.ReasonNotOnMirror {
			t.Errorf("%s was told %d times, and says %q", name, writes, reason)
		}
	}
}

func TestAQuestionToNodesIsNoPull(t *testing.T) {
	cluster, _ := imported("sha256:a", "", "sha256:a")
	cluster.limits.MaxConcurrentPulls = 1
	for _, m := range cluster.machines {
		m.dead = true
	}
	cluster.run(t, 1)
	cluster.addPrefetch("other", "reg/b:1")
	cluster.run(t, 1)
	if asked := cluster.nodesWithPolicy("local/a:1", v1alpha1.RegistryPolicyLocal); asked != "n000 n001 n002" || len(cluster.seedsOf("reg/b:1")) != len("n000") {
		t.Errorf("asked: %s; the seed of the other: %q", asked, cluster.seedsOf("reg/b:1"))
	}
}

// lateComer adds a prefetch that asks all nodes of a cluster whose first prefetch goes by n000 alone.
func lateComer(t *testing.T, digests ...string) (*fakeCluster, *Prefetch) {
	cluster, first := imported(digests...)
	first.NodeSelector = map[string]string{"of": "first"}
	cluster.machines["n000"].node.Labels = first.NodeSelector
	cluster.run(t, 20)
	later := cluster.addPrefetch("later", "local/a:1")
	later.NodeLocal = later.Images
	delete(cluster.tags, "local/a:1")
	return cluster, later
}

func TestANodeThatIsToHaveADigestIsNotAskedWhatItHas(t *testing.T) {
	cluster, later := lateComer(t, "sha256:a", "sha256:a")
	cluster.machines["n001"].dead = true // so that the question stays open
	step := cluster.run(t, 20)
	if got := cluster.specOf("n000", "local/a:1"); got != "Mirror sha256:a" || step.Prefetches[later.Key].Digests["local/a:1"].Digest != "" {
		t.Errorf("it is to get %q: %+v", got, step.Prefetches[later.Key])
	}
}

func TestANodeIsAskedAgainOnlyOnceItsAgentHasForgottenTheLastQuestion(t *testing.T) {
	cluster, p := imported("", "sha256:a")
	cluster.run(t, 20)
	delete(cluster.prefetches, p.Key)
	cluster.plan()
	cluster.prefetches[p.Key] = p // before any agent has seen that its entry is gone
	for range 5 {
		cluster.plan()
		if got := cluster.specOf("n000", "local/a:1"); got != "" {
			t.Fatalf("n000 is to answer as %q: its agent would notice nothing", got)
		}
	}
	cluster.machines["n000"].content["local/a:1"] = "sha256:a"
	if got := cluster.run(t, 20).Prefetches[p.Key].Digests["local/a:1"].Digest; got != "sha256:a" {
		t.Errorf("it is resolved to %q\n%s", got, cluster)
	}
}

func TestANodeThatCannotGetWhatIsForgottenIsAskedWhatItHas(t *testing.T) {
	cluster, later := lateComer(t, "sha256:a", "sha256:b")
	cluster.run(t, 20) // n000 is to have what the first prefetch knows, and n001 has something else
	delete(cluster.prefetches, "team/x")
	for _, m := range cluster.machines {
		m.content["local/a:1"] = "sha256:b" // it is imported
	}
	if got := cluster.run(t, 300).Prefetches[later.Key].Digests["local/a:1"].Digest; got != "sha256:b" {
		t.Errorf("it is resolved to %q\n%s", got, cluster)
	}
}

func TestWhatNodesFailToGetIsNoAnswer(t *testing.T) {
	cluster, p := imported("sha256:a", "sha256:a")
	cluster.run(t, 20)
	for _, m := range cluster.machines {
		m.content["local/a:1"] = "sha256:b" // it is imported
	}
	cluster.run(t, 300)
	delete(cluster.prefetches, p.Key)
	other := cluster.addPrefetch("other", "local/a:1") // in its place
	other.NodeLocal = other.Images
	delete(cluster.tags, "local/a:1")
	if got := cluster.run(t, 20).Prefetches[other.Key].Digests["local/a:1"].Digest; got != "sha256:b" {
		t.Errorf("it is resolved to %q\n%s", got, cluster)
	}
}
