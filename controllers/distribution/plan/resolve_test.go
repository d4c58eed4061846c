// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// resolvers are the nodes that are to resolve the tag of an image, sorted.
func (c *fakeCluster) resolvers(image string) (names []string) {
	for _, n := range c.state().Nodes {
		if n.Entries[image].unanswered() {
			names = append(names, n.Name)
		}
	}
	return names
}

func TestTagIsResolvedOnce(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.addNode("arm", func(n *Node) { n.Platform = "linux/arm64" })
	x, y := cluster.addPrefetch("x", "reg/a:1"), cluster.addPrefetch("y", "reg/a:1")
	cluster.plan()
	if got := strings.Join(cluster.resolvers("reg/a:1"), " "); got != "arm" && got != "n000" {
		t.Fatalf("one node of the whole cluster asks for two prefetches, not %q", got)
	}
	cluster.settle(t)
	cluster.checkServed(t)
	if x.Resolved["reg/a:1"] != y.Resolved["reg/a:1"] || x.Resolved["reg/a:1"].Digest == "" {
		t.Errorf("recorded %v and %v", x.Resolved, y.Resolved)
	}
}

func TestMovedTagIsLeftAloneUntilAskedFor(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.settle(t)
	first := cluster.tags["reg/a:1"]
	cluster.tags["reg/a:1"] = "sha256:second"
	cluster.addNode("n999") // it gets what the others have, not what the tag means by now
	cluster.settle(t)
	if got := cluster.machines["n999"].content["reg/a:1"]; got != first {
		t.Fatalf("a node that joined has %s, not %s", got, first)
	}
	p.Refresh = "now"
	cluster.settle(t)
	cluster.checkServed(t)
	for name, m := range cluster.machines {
		if m.content["reg/a:1"] != "sha256:second" {
			t.Errorf("after the refresh %s has %s", name, m.content["reg/a:1"])
		}
	}
}

func TestRefreshOfAnUnmovedTagCostsOneQuestion(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(4)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.settle(t)
	clear(cluster.writes)
	p.Refresh = "2"
	cluster.settle(t)
	cluster.checkServed(t)
	if len(cluster.writes) != 1 {
		t.Errorf("besides the resolver's, specs were written: %v", cluster.writes)
	}
	for _, m := range cluster.machines {
		if m.pulls != 0 && m.pulls != 1 {
			t.Errorf("%s pulled %d times", m.node.Name, m.pulls)
		}
	}
}

func TestNewestAnswerCountsForAllPrefetches(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	x := cluster.addPrefetch("x", "reg/a:1")
	cluster.settle(t)
	cluster.tags["reg/a:1"] = "sha256:second"
	cluster.addPrefetch("y", "reg/a:1")
	cluster.settle(t)
	cluster.checkServed(t)
	if got := x.Resolved["reg/a:1"]; got.Digest != "sha256:second" || got.Refresh != "" {
		t.Errorf("the other prefetch still says %v", got)
	}
}

func TestWhileATagIsAskedForAgain(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.settle(t)
	cluster.registryDown = true
	p.Refresh = "2"
	cluster.addNode("n999")
	for range 30 {
		cluster.plan()
		cluster.round()
	}
	o := cluster.next().Prefetches[p.Key]
	if _, ok := o.Digests["reg/a:1"]; ok {
		t.Errorf("an image that is being resolved has a digest: %v", o.Digests)
	}
	if len(cluster.machines["n999"].spec) > 0 && cluster.machines["n999"].spec["reg/a:1"].RegistryPolicy == v1alpha1.RegistryPolicyMirror {
		t.Errorf("a new node gets a digest that may be out of date: %v", cluster.machines["n999"].spec)
	}
	pinned := 0
	for name, m := range cluster.machines {
		if name != "n999" && len(m.spec) == 1 {
			pinned++
		}
	}
	if pinned != 3 {
		t.Errorf("nodes lost their pins while the registry was down:\n%s", cluster)
	}
	cluster.registryDown = false
	cluster.settle(t)
	cluster.checkServed(t)
}

func TestResolverKeepsWhatItHas(t *testing.T) {
	for _, c := range []struct {
		reason string
		nodes  int
		happen func(cluster *fakeCluster, p *Prefetch)
	}{
		{"the registry is down, and no other node can ask", 1, func(cluster *fakeCluster, p *Prefetch) { cluster.registryDown = true }},
		{"the registry is down", 3, func(cluster *fakeCluster, p *Prefetch) { cluster.registryDown = true }},
		{"the registry refuses", 3, func(cluster *fakeCluster, p *Prefetch) { cluster.private = true }},
		{"the disk of the node that asks is full", 3, func(cluster *fakeCluster, p *Prefetch) {
			cluster.registryDown = true
			cluster.run(t, 1)
			cluster.machines[cluster.resolvers("reg/a:1")[0]].node.DiskPressure = true
		}},
		{"no prefetch asks any more", 3, func(cluster *fakeCluster, p *Prefetch) {
			cluster.registryDown = true
			cluster.run(t, 3)
			delete(cluster.prefetches, p.Key)
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(c.nodes)
			other := cluster.addPrefetch("other", "reg/a:1")
			cluster.settle(t)
			digest := cluster.tags["reg/a:1"]
			p := cluster.addPrefetch("web", "reg/a:1")
			c.happen(cluster, p)
			for range 300 {
				step := cluster.run(t, 1)
				if got := step.Prefetches[other.Key].Digests["reg/a:1"].Digest; got != digest {
					t.Fatalf("the other prefetch gets %q", got)
				}
				for _, n := range cluster.state().Nodes {
					e := n.Entries["reg/a:1"]
					if e.Wanted == nil || e.Wanted.Digest != digest || e.Status.State != v1alpha1.ImagePresent || e.Status.Digest != digest {
						t.Fatalf("%s has lost it:\n%s", n.Name, cluster)
					}
				}
			}
			cluster.addNode("n999") // and it can serve others
			cluster.run(t, 30)
			if cluster.machines["n999"].content["reg/a:1"] != digest || cluster.machines["n999"].status["reg/a:1"].Source != v1alpha1.SourceMirror {
				t.Errorf("a node that joined is not served by it:\n%s", cluster)
			}
			cluster.registryDown, cluster.private = false, false
			cluster.tags["reg/a:1"] = "sha256:second"
			p.Refresh, cluster.prefetches[p.Key] = "2", p
			for _, m := range cluster.machines {
				m.recover()
			}
			cluster.settle(t)
			cluster.checkServed(t)
			if got := other.Resolved["reg/a:1"].Digest; got != "sha256:second" {
				t.Errorf("the new answer is %q", got)
			}
		})
	}
}

func TestPullGoesOnWhileTheResolverAsksAgain(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(1)
	other := cluster.addPrefetch("other", "reg/a:1")
	cluster.run(t, 2)
	digest := other.Resolved["reg/a:1"].Digest
	cluster.addPrefetch("web", "reg/a:1")
	cluster.plan()
	if got := cluster.machines["n000"].spec["reg/a:1"]; got.Digest != digest || len(cluster.resolvers("reg/a:1")) != 1 {
		t.Errorf("it is asked for %+v, and it was bringing %s", got, digest)
	}
	cluster.settle(t)
	cluster.checkServed(t)
}

func TestResolversTakeTurnsWithABackoff(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.addPrefetch("other", "reg/a:1")
	cluster.settle(t)
	cluster.registryDown = true
	cluster.addPrefetch("web", "reg/a:1")
	asked := make(map[string]int)
	last := ""
	for range 180 {
		cluster.run(t, 1)
		for _, name := range cluster.resolvers("reg/a:1") {
			if name != last {
				asked[name]++
			}
			last = name
		}
	}
	for name := range cluster.machines {
		if n := asked[name]; n < 2 || n > 4 { // once a minute
			t.Errorf("%s asked %d times in three minutes", name, n)
		}
	}
}

func TestResolverIsDoneBeforeTheNextAsks(t *testing.T) {
	for _, c := range []struct {
		reason string
		happen func(cluster *fakeCluster, p *Prefetch)
	}{
		{"it was too slow", func(cluster *fakeCluster, _ *Prefetch) { cluster.now = cluster.now.Add(cluster.limits.SeedTimeout) }},
		{"it was, and the controller restarts", func(cluster *fakeCluster, _ *Prefetch) {
			cluster.now = cluster.now.Add(cluster.limits.SeedTimeout)
			cluster.planUntilStable(t)
			cluster.restart()
		}},
		{"its prefetch is gone, and another asks", func(cluster *fakeCluster, p *Prefetch) {
			delete(cluster.prefetches, p.Key)
			cluster.planUntilStable(t)
			cluster.addPrefetch("third", "reg/a:1")
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			cluster.addPrefetch("other", "reg/a:1")
			cluster.settle(t)
			p := cluster.addPrefetch("web", "reg/a:1")
			cluster.plan()
			first := cluster.resolvers("reg/a:1")[0]
			m := cluster.machines[first]
			m.deliver()
			m.observed = m.viewGeneration // it asks, and the controller does not see the answer
			cluster.report(m)
			cluster.planUntilStable(t)
			c.happen(cluster, p)
			cluster.planUntilStable(t)
			if got := cluster.resolvers("reg/a:1"); len(got) > 0 {
				t.Errorf("%v asks while %s may be pulling\n%s", got, first, cluster)
			}
			m.deliver()
			cluster.work(m)
			cluster.report(m)
			cluster.planUntilStable(t)
			if got := cluster.resolvers("reg/a:1"); len(got) != 1 {
				t.Errorf("%v ask once the agent of %s has seen it", got, first)
			}
		})
	}
}

func TestAnswerOutlivesACrash(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.plan()
	cluster.round()
	// The resolver has answered; the controller dies before it records that, and the tag moves.
	cluster.restart()
	first := cluster.tags["reg/a:1"]
	cluster.tags["reg/a:1"] = "sha256:second"
	cluster.settle(t)
	cluster.checkServed(t)
	if got := p.Resolved["reg/a:1"].Digest; got != first {
		t.Errorf("it was asked twice: %s", got)
	}
}

func TestRecordsThatDisagree(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	x, y := cluster.addPrefetch("x", "reg/a:1"), cluster.addPrefetch("y", "reg/a:1")
	x.Resolved["reg/a:1"], y.Resolved["reg/a:1"] = Resolved{Digest: "sha256:old"}, Resolved{Digest: "sha256:new"}
	retries := int32(3)
	for _, name := range []string{"n000", "n001"} {
		cluster.machines[name].spec["reg/a:1"] = v1alpha1.NodeImage{Name: "reg/a:1", Digest: "sha256:new",
			RegistryPolicy: v1alpha1.RegistryPolicyMirror, ImageDownloadRetryLimit: &retries, Retention: v1alpha1.RetentionPinned}
	}
	step := Next(cluster.state(), cluster.limits)
	for key, o := range step.Prefetches {
		if o.Digests["reg/a:1"].Digest != "sha256:new" {
			t.Errorf("%s goes with %v, not with what most nodes are asked for", key, o.Digests)
		}
	}
}

func TestResolverIsANodeThatHasTheImage(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(5)
	cluster.machines["n003"].node.KubeletImages = []string{"reg/a:1"}
	cluster.addPrefetch("web", "reg/a:1")
	cluster.plan()
	if got := strings.Join(cluster.resolvers("reg/a:1"), " "); got != "n003" {
		t.Errorf("%q asks, not the node whose kubelet lists the image", got)
	}
}

func TestRequestIDsOfManyPrefetchesFitIntoTheAPI(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	for i := range 500 {
		cluster.addPrefetch(strings.Repeat("x", i+1), "reg/a:1")
	}
	for range 5 {
		cluster.plan()
		for name, m := range cluster.machines {
			if requestIDs := m.spec["reg/a:1"].Request; len(requestIDs) > 2048 {
				t.Fatalf("the request IDs of %s have %d characters", name, len(requestIDs))
			}
		}
		cluster.round()
	}
	cluster.settle(t)
	cluster.checkServed(t)
}

func TestImageNamedByDigestIsNeverAskedFor(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	p := cluster.addPrefetch("web", "reg/a@sha256:abc")
	step, _ := cluster.plan()
	if got := step.Prefetches[p.Key].Digests["reg/a@sha256:abc"]; got != (Resolved{Digest: "sha256:abc"}) {
		t.Errorf("its digest is in its name, not %v", got)
	}
	if got := cluster.resolvers("reg/a@sha256:abc"); got != nil {
		t.Errorf("%v ask", got)
	}
}

func TestByDigest(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"docker.io/library/nginx:1", "docker.io/library/nginx@sha256:d"},
		{"registry:5000/app:v2", "registry:5000/app@sha256:d"},
		{"registry:5000/app@sha256:d", "registry:5000/app@sha256:d"},
	} {
		if got := byDigest(c.name, "sha256:d"); got != c.want {
			t.Errorf("%s is %s, want %s", c.name, got, c.want)
		}
	}
}

func TestWhichAnswersCount(t *testing.T) {
	const told = "sha256:told"
	for _, tt := range []struct {
		reason  string
		nodes   int // that the prefetch desires
		request string
		digest  string
		open    int
	}{
		{"the answer of a node that is no resolver any more", 1, "1", told, 0},
		{"one that answers a prefetch which is gone as well", 1, "0-gone,1", told, 0},
		{"none", 1, "", "", 1},
		{"none is needed where no node is to have the image", 0, "", "", 0},
	} {
		pf := &prefetch{Prefetch: &Prefetch{Key: "team/x"}, requestID: "1", targets: &targetNodes{desired: make([]*node, tt.nodes)}}
		im := &image{name: "reg/a:v1", prefetches: []*prefetch{pf}, resolved: map[*prefetch]bool{}}
		im.entries = []nodeEntry{{Entry: Entry{
			Wanted: &v1alpha1.NodeImage{Name: im.name, Digest: told, RegistryPolicy: v1alpha1.RegistryPolicyMirror},
			Status: &v1alpha1.NodeImageStatus{Name: im.name, Digest: told, Request: tt.request, State: v1alpha1.ImagePresent},
		}}}
		im.resolveDigest()
		if im.digest != tt.digest || len(im.openRequestIDs) != tt.open {
			t.Errorf("%s: the tag means %q, and %v are open", tt.reason, im.digest, im.openRequestIDs)
		}
	}
}

func TestAnOrphanedResolverIsOneThatMayStillAsk(t *testing.T) {
	for _, tt := range []struct {
		reason               string
		wanted, acknowledged bool
		want                 bool
	}{
		{"nobody wants the image there, and its agent may have begun", false, false, true},
		{"its agent has seen that nobody wants it", false, true, false},
		{"it is wanted", true, false, false},
	} {
		p := &placement{node: &node{Node: &Node{Acknowledged: tt.acknowledged}}, state: pulling, Entry: Entry{
			Wanted: &v1alpha1.NodeImage{Name: "reg/a:v1", Request: "1", RegistryPolicy: v1alpha1.RegistryPolicyDefault},
		}}
		if tt.wanted {
			p.requirements = &requirements{}
		}
		if got := (&image{placements: []*placement{p}}).hasOrphanedResolver(); got != tt.want {
			t.Errorf("%s: orphaned %t, want %t", tt.reason, got, tt.want)
		}
	}
}
