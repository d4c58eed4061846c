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

const waveImage, waveDigest = "reg/a@sha256:d", "sha256:d"

// newClusterWithHolder is a cluster whose first node has the image.
func newClusterWithHolder(nodes int) *fakeCluster {
	cluster := newFakeCluster()
	cluster.addNodes(nodes)
	cluster.addPrefetch("web", waveImage)
	cluster.makeHolder("n000", waveImage, waveDigest)
	return cluster
}

func TestWaveIsAsLargeAsHoldersCanServe(t *testing.T) {
	cluster := newClusterWithHolder(100)
	cluster.planUntilStable(t)
	for _, want := range []int{1 + 4, 5 + 20, 100} {
		if got := len(strings.Fields(cluster.peersOf(waveImage))); got != want {
			t.Fatalf("%d nodes have it or were admitted, want %d", got, want)
		}
		for cluster.pullingCount() > 0 {
			cluster.round()
		}
		cluster.planUntilStable(t)
	}
	cluster.settle(t)
	cluster.checkServed(t)
	for nodeAndImage, writes := range cluster.writes {
		if writes != 1 && nodeAndImage != "n000 "+waveImage {
			t.Errorf("the spec of %s was written %d times", nodeAndImage, writes)
		}
	}
}

// pullingCount is how many placements do not have yet what their spec asks.
func (c *fakeCluster) pullingCount() (count int) {
	for _, m := range c.machines {
		for image, entry := range m.spec {
			if m.status[image].State != v1alpha1.ImagePresent || m.content[image] != entry.Digest {
				count++
			}
		}
	}
	return count
}

func TestWhatTakesAnOpeningOfAWave(t *testing.T) {
	for _, c := range []struct {
		reason  string
		arrange func(cluster *fakeCluster)
		after   time.Duration
		want    int // nodes admitted beside the holder
	}{
		{"a node that pulls", func(*fakeCluster) {}, 0, 4},
		{"a node that makes progress", func(cluster *fakeCluster) { cluster.startFirstWave(2) }, defaults.SeedTimeout - 1, 4},
		{"not one that has made no progress for too long", func(cluster *fakeCluster) { cluster.startFirstWave(2) }, defaults.SeedTimeout, 8},
		{"a node that has received nothing yet, within serveTimeout", func(cluster *fakeCluster) { cluster.startFirstWave(1) }, serveTimeout - 1, 4},
		{"not one that has received nothing although another node has the image", func(cluster *fakeCluster) { cluster.startFirstWave(1) }, serveTimeout, 8},
		{"a node whose agent has not answered yet, within answerTimeout", func(*fakeCluster) {}, answerTimeout - 1, 4},
		{"not one whose agent has not answered after that", func(*fakeCluster) {}, answerTimeout, 8},
		{"not one that failed", func(cluster *fakeCluster) {
			m := cluster.machines["n002"]
			m.diskFull = true
			for range 10 {
				m.deliver()
				cluster.work(m)
			}
			cluster.report(m)
		}, 0, 5},
		{"not one that failed and waits for its next try", func(cluster *fakeCluster) { cluster.cutOff("n002", 2) }, 0, 5},
		{"not one whose next try has received nothing yet", func(cluster *fakeCluster) { cluster.cutOff("n002", 3) }, 0, 5},
		{"one whose next try makes progress", func(cluster *fakeCluster) {
			cluster.limits.FollowSeed = false // what it has opens nothing either
			cluster.cutOff("n002", 3)
			cluster.machines["n002"].cutOff = false
			cluster.work(cluster.machines["n002"])
			cluster.report(cluster.machines["n002"])
		}, 0, 4},
		{"one that has not seen yet that its spec has changed", func(cluster *fakeCluster) {
			cluster.cutOff("n002", 2)
			cluster.machines["n002"].generation++
		}, 0, 4},
		{"not one that is not Ready", func(cluster *fakeCluster) { cluster.machines["n002"].node.Ready = false }, 0, 5},
		{"not one that pulls another digest", func(cluster *fakeCluster) { cluster.makeHolder("n009", waveImage, "sha256:old") }, 0, 4},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newClusterWithHolder(30)
			cluster.planUntilStable(t)
			c.arrange(cluster)
			cluster.now = cluster.now.Add(c.after)
			cluster.planUntilStable(t)
			admitted := 0
			for name, m := range cluster.machines {
				if e, ok := m.spec[waveImage]; ok && name != "n000" && e.Digest == waveDigest {
					admitted++
				}
			}
			if admitted != c.want {
				t.Errorf("%d admitted, want %d", admitted, c.want)
			}
		})
	}
}

// startFirstWave has the nodes of the first wave work for some turns: one to begin, each next for a
// layer.
func (c *fakeCluster) startFirstWave(turns int) {
	c.limits.FollowSeed = false // what they have opens nothing
	for i := 1; i <= 4; i++ {
		m := c.machines[fmt.Sprintf("n%03d", i)]
		m.deliver()
		for range turns {
			c.work(m)
		}
		c.report(m)
	}
}

// defaults are the limits of a fake cluster.
var defaults = newFakeCluster().limits

// cutOff has a node work for some turns without the mirror.
func (c *fakeCluster) cutOff(name string, turns int) {
	m := c.machines[name]
	m.cutOff = true
	m.deliver()
	for range turns {
		c.work(m)
	}
	c.report(m)
}

func TestOthersDoNotWaitForFailingNodes(t *testing.T) {
	for _, c := range []struct {
		reason string
		spoil  func(m *machine)
		within time.Duration
	}{
		{"whose agent does not run", func(m *machine) { m.dead = true }, 25 * time.Second},
		{"whose pulls hang", func(m *machine) { m.hung = true }, 40 * time.Second},
		{"whose disk is full", func(m *machine) { m.diskFull = true }, 40 * time.Second},
		{"whom the mirror does not serve", func(m *machine) { m.cutOff = true }, 12 * time.Second},
		{"whose pulls ask a mirror that does not serve them", func(m *machine) { m.cutOff, m.missTurns = true, 60 }, 40 * time.Second},
		{"whose tries hang one after the other", func(m *machine) { m.hung, m.retryTurns = true, 20 }, 40 * time.Second},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newClusterWithHolder(20)
			spoiled := func(name string) bool { return name > "n000" && name < "n009" }
			for name, m := range cluster.machines {
				if spoiled(name) {
					c.spoil(m)
				}
			}
			began := cluster.now
			for served := 0; served < 12; {
				cluster.run(t, 1)
				served = 0
				for name, m := range cluster.machines {
					if m.content[waveImage] != "" && !spoiled(name) {
						served++
					}
				}
				if cluster.now.Sub(began) > c.within {
					t.Fatalf("after %v only %d of 12 nodes were served\n%s", c.within, served, cluster)
				}
			}
		})
	}
}

func TestLimitOfTheClusterHoldsForAllImagesTogether(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(30)
	cluster.limits.MaxConcurrentPulls = 3
	images := []string{"reg/a@sha256:a", "reg/b@sha256:b", "reg/c@sha256:c", "reg/d@sha256:d"}
	cluster.addPrefetch("web", images...)
	for cluster.pullingCount() > 0 || len(cluster.writes) < 30*len(images) {
		cluster.plan()
		if got := cluster.pullingCount(); got > 3 {
			t.Fatalf("%d pull at a time", got)
		}
		cluster.round()
	}
	cluster.checkServed(t)
}

func TestRetriesCountForTheLimitOfTheCluster(t *testing.T) {
	cluster := newClusterWithHolder(30)
	cluster.limits.MaxConcurrentPulls = 3
	cluster.planUntilStable(t)
	cluster.cutOff("n001", 2)
	cluster.cutOff("n002", 3)
	cluster.planUntilStable(t)
	if got := cluster.peersOf(waveImage); got != "n000 n001 n002 n003" {
		t.Errorf("admitted %q while two may pull again at any moment", got)
	}
}

func TestOldKubeletListsCountForTheLimitOfTheCluster(t *testing.T) {
	cluster := newClusterWithHolder(30)
	cluster.limits.MaxConcurrentPulls = 3
	for _, m := range cluster.machines {
		m.node.KubeletImages = []string{waveImage}
	}
	for cluster.pullingCount() > 0 || len(cluster.writes) < 29 {
		cluster.plan()
		if got := cluster.pullingCount(); got > 3 {
			t.Fatalf("%d pull at a time", got)
		}
		cluster.round()
	}
	cluster.checkServed(t)
}

func TestSmallPrefetchDoesNotWaitForALargeOne(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(50)
	cluster.limits.MaxConcurrentPulls = 4
	cluster.addPrefetch("large", "reg/a@sha256:a")
	p := cluster.addPrefetch("small", "reg/z@sha256:z")
	p.NodeSelector = map[string]string{"team": "z"}
	for _, name := range []string{"n047", "n048", "n049"} {
		cluster.machines[name].node.Labels = p.NodeSelector
	}
	cluster.run(t, 30)
	if got := cluster.peersOf("reg/z@sha256:z"); got != "n047 n048 n049" {
		t.Errorf("after half a minute only %q have it", got)
	}
	if got := len(strings.Fields(cluster.peersOf("reg/a@sha256:a"))); got == 50 {
		t.Error("the large one is done already: this shows nothing")
	}
}

func TestFollowingASeed(t *testing.T) {
	for _, c := range []struct {
		follow bool
		want   string
	}{{true, "n001 n002 n003 n004"}, {false, ""}} {
		cluster := newFakeCluster()
		cluster.limits.FollowSeed = c.follow
		cluster.addNodes(30)
		cluster.addPrefetch("web", "reg/a:1")
		cluster.planUntilStable(t)
		cluster.round()
		cluster.planUntilStable(t)
		if got := cluster.peersOf("reg/a:1"); got != c.want {
			t.Errorf("follow %v: %q, want %q", c.follow, got, c.want)
		}
	}
}

func TestFollowersOpenWavesByWhatTheyHave(t *testing.T) {
	for _, c := range []struct {
		reason   string
		follow   bool
		count    int   // of followers that have something
		got, of  int64 // bytes that each of them has
		followed int
	}{
		{"nothing yet", true, 4, 0, 100, 4},
		{"a size that is not known yet", true, 4, 10, 0, 4},
		{"a quarter each is one source more", true, 4, 25, 100, 8},
		{"they count for three times the seed at most", true, 4, 90, 100, 16},
		{"no node serves more than one image", true, 1, 900, 100, 8},
		{"unless followers do not count", false, 4, 25, 100, 4},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(30)
			cluster.addPrefetch("web", "reg/a:1")
			cluster.planUntilStable(t)
			cluster.round()
			cluster.planUntilStable(t)
			cluster.limits.FollowSeed = c.follow
			for _, name := range []string{"n001", "n002", "n003", "n004"}[:c.count] {
				m := cluster.machines[name]
				m.deliver()
				cluster.work(m)
				s := m.status["reg/a:1"]
				s.State, s.PulledBytes, s.SizeBytes = v1alpha1.ImagePulling, c.got, c.of
				m.status["reg/a:1"] = s
				cluster.report(m)
			}
			cluster.planUntilStable(t)
			if got := len(strings.Fields(cluster.peersOf("reg/a:1"))); got != c.followed {
				t.Errorf("%d follow, want %d", got, c.followed)
			}
		})
	}
}

func TestNoPeerFollowsASeedWithoutManifests(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.addPrefetch("web", waveImage)
	cluster.planUntilStable(t)
	if cluster.seedsOf(waveImage) != "n000" || cluster.peersOf(waveImage) != "" {
		t.Errorf("%q follow %q", cluster.peersOf(waveImage), cluster.seedsOf(waveImage))
	}
	cluster.round() // it pulls, and does not say yet how much
	seed := cluster.machines["n000"].cached
	s := seed[waveImage]
	s.SizeBytes = 0
	seed[waveImage] = s
	cluster.planUntilStable(t)
	if s.State != v1alpha1.ImagePulling || cluster.peersOf(waveImage) != "" {
		t.Errorf("%q follow %+v", cluster.peersOf(waveImage), s)
	}
}

func TestNodesThatHaveTheDigestNeedNoOpening(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(50)
	for _, m := range cluster.machines {
		m.content["reg/a:1"] = "sha256:reg/a:1-1"
		m.node.KubeletImages = []string{"other", "reg/a:1", "reg/a@sha256:reg/a:1-1"}
	}
	cluster.addPrefetch("web", "reg/a:1")
	cluster.run(t, 1)
	cluster.plan()
	if got := len(strings.Fields(cluster.peersOf("reg/a:1"))); got != 50 && got != 49 {
		t.Errorf("only %d were pinned at once", got)
	}
	cluster.settle(t)
	cluster.checkServed(t)
	for name, m := range cluster.machines {
		if m.pulls != 0 {
			t.Errorf("%s pulled", name)
		}
	}
}

func TestOrderOfAWave(t *testing.T) {
	cluster := newFakeCluster()
	cluster.limits.Fanout = 3
	cluster.addNodes(8)
	p := cluster.addPrefetch("web", "reg/a:1")
	p.Resolved["reg/a:1"] = Resolved{Digest: "sha256:a"}
	other := cluster.addPrefetch("other", "reg/o@sha256:o")
	other.NodeSelector = map[string]string{"known": "yes"}
	for _, name := range []string{"n004", "n005", "n006", "n007"} {
		cluster.machines[name].node.Labels = other.NodeSelector
		cluster.makeHolder(name, "reg/o@sha256:o", "sha256:o")
	}
	cluster.makeHolder("n000", "reg/a:1", "sha256:a")
	cluster.machines["n002"].node.KubeletImages = []string{"reg/a:1"}
	cluster.planUntilStable(t)
	if got := cluster.peersOf("reg/a:1"); got != "n000 n002 n004 n005" {
		t.Errorf("admitted %q", got)
	}
}

func TestNodesThatGetNothingComeLastForOtherImages(t *testing.T) {
	cluster := newClusterWithHolder(30)
	cluster.planUntilStable(t)
	cluster.machines["n002"].cutOff = true
	cluster.startFirstWave(2)
	cluster.addPrefetch("other", "reg/o@sha256:o")
	cluster.makeHolder("n000", "reg/o@sha256:o", "sha256:o")
	cluster.planUntilStable(t)
	if got := cluster.peersOf("reg/o@sha256:o"); got != "n000 n001 n003 n004 n005" {
		t.Errorf("admitted %q", got)
	}
}

func TestNewDigestIsDistributedLikeTheFirst(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(40)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.settle(t)
	cluster.tags["reg/a:1"] = "sha256:second"
	p.Refresh = "2"
	most := 0
	for range 60 {
		cluster.plan()
		cluster.check(t)
		for _, m := range cluster.machines {
			if len(m.spec) == 0 {
				t.Fatalf("%s lost its pin while it waited", m.node.Name)
			}
		}
		if n := cluster.pullingCount(); n > most {
			most = n
		}
		if cluster.holders("reg/a:1", "sha256:second") == 0 && cluster.pullingCount() > 1+cluster.limits.Fanout {
			t.Fatalf("nodes with the old digest count as holders:\n%s", cluster)
		}
		cluster.round()
	}
	cluster.checkServed(t)
	if most < 20 {
		t.Errorf("at most %d at a time", most)
	}
}

func (c *fakeCluster) holders(image, digest string) (count int) {
	for _, m := range c.machines {
		if m.content[image] == digest {
			count++
		}
	}
	return count
}

func TestPartialHoldersCountForAsManyTimesTheHolders(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	entries := []*Entry{peerEntry(now, 9, 9), peerEntry(now, 9, 9)} // holders
	for range 3 {
		entries = append(entries, peerEntry(now, 999_999, 1_000_000))
	}
	entries = append(entries, make([]*Entry, 40)...)
	admitted := 0
	for name, set := range Next(stateOf(now, entries...), DefaultLimits()).Sets {
		if name >= "n005" && len(set) > 0 {
			admitted++
		}
	}
	if want := 4*(2+3) - 3 - 1; admitted != want { // of 4 for each, what the three still take, rounded down
		t.Errorf("%d nodes were admitted, want %d", admitted, want)
	}
}

func TestANodeThatHasTheImageWithoutAnEntryGetsOneAtOnce(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	left := peerEntry(now, 9, 9)
	left.Wanted = nil // taken off, and the agent has not answered yet
	set := Next(stateOf(now, peerEntry(now, 9, 9), left), DefaultLimits()).Sets["n001"]
	if len(set) != 1 || set[0].Digest != waveDigest || set[0].RegistryPolicy != v1alpha1.RegistryPolicyMirror {
		t.Errorf("the node that has it gets %+v", set)
	}
}
