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

const waved, wavedDigest = "reg/a@sha256:d", "sha256:d"

// afterTheSeed is a cluster whose first node holds the image.
func afterTheSeed(nodes int) *world {
	w := newWorld()
	w.joinMany(nodes)
	w.wish("web", waved)
	w.hold("n000", waved, wavedDigest)
	return w
}

func TestWaveIsAsLargeAsHoldersCanServe(t *testing.T) {
	w := afterTheSeed(100)
	w.still(t)
	for _, want := range []int{1 + 4, 5 + 20, 100} {
		if got := len(strings.Fields(w.peers(waved))); got != want {
			t.Fatalf("%d nodes hold it or were admitted, want %d", got, want)
		}
		for w.pullingCount() > 0 {
			w.round()
		}
		w.still(t)
	}
	w.settle(t)
	w.checkServed(t)
	for key, writes := range w.writes {
		if writes != 1 && key != "n000 "+waved {
			t.Errorf("the spec of %s was written %d times", key, writes)
		}
	}
}

// pullingCount is how many agents have not yet done what their spec asks.
func (w *world) pullingCount() (count int) {
	for _, m := range w.machines {
		for image, entry := range m.spec {
			if m.status[image].State != v1alpha1.ImagePresent || m.content[image] != entry.Digest {
				count++
			}
		}
	}
	return count
}

func TestWhatTakesRoomInAWave(t *testing.T) {
	for _, c := range []struct {
		reason  string
		arrange func(w *world)
		after   time.Duration
		want    int // nodes admitted beside the holder
	}{
		{"a node that pulls", func(*world) {}, 0, 4},
		{"a node that is getting on", func(w *world) { w.begin(2) }, w0.limits.SeedTimeout - 1, 4},
		{"not one that has made no progress for too long", func(w *world) { w.begin(2) }, w0.limits.SeedTimeout, 8},
		{"a node that has hardly had the time to get anything", func(w *world) { w.begin(1) }, serveTimeout - 1, 4},
		{"not one that has got nothing although it is there", func(w *world) { w.begin(1) }, serveTimeout, 8},
		{"a node that has hardly had the time to answer", func(*world) {}, answerTimeout - 1, 4},
		{"not one that has not answered when it should", func(*world) {}, answerTimeout, 8},
		{"not one that failed", func(w *world) {
			m := w.machines["n002"]
			m.full = true
			for range 10 {
				m.deliver()
				w.work(m)
			}
			w.report(m)
		}, 0, 5},
		{"not one that failed and waits for its next try", func(w *world) { w.cutOff("n002", 2) }, 0, 5},
		{"not one whose next try has brought nothing yet", func(w *world) { w.cutOff("n002", 3) }, 0, 5},
		{"one whose next try gets on", func(w *world) {
			w.limits.FollowSeed = false // what it has makes no room either
			w.cutOff("n002", 3)
			w.machines["n002"].cutOff = false
			w.work(w.machines["n002"])
			w.report(w.machines["n002"])
		}, 0, 4},
		{"one that has not heard yet that it is to try another digest", func(w *world) {
			w.cutOff("n002", 2)
			w.machines["n002"].generation++
		}, 0, 4},
		{"not one that is not Ready", func(w *world) { w.machines["n002"].node.Ready = false }, 0, 5},
		{"not one that pulls another digest", func(w *world) { w.hold("n009", waved, "sha256:old") }, 0, 4},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := afterTheSeed(30)
			w.still(t)
			c.arrange(w)
			w.now = w.now.Add(c.after)
			w.still(t)
			admitted := 0
			for name, m := range w.machines {
				if e, ok := m.spec[waved]; ok && name != "n000" && e.Digest == wavedDigest {
					admitted++
				}
			}
			if admitted != c.want {
				t.Errorf("%d admitted, want %d", admitted, c.want)
			}
		})
	}
}

// begin has the first wave work for so many turns: one to begin, the next for a layer.
func (w *world) begin(turns int) {
	w.limits.FollowSeed = false // what they have makes no room
	for i := 1; i <= 4; i++ {
		m := w.machines[fmt.Sprintf("n%03d", i)]
		m.deliver()
		for range turns {
			w.work(m)
		}
		w.report(m)
	}
}

// w0 is there for its limits.
var w0 = newWorld()

// cutOff has a node work for so many turns without the mirror.
func (w *world) cutOff(name string, turns int) {
	m := w.machines[name]
	m.cutOff = true
	m.deliver()
	for range turns {
		w.work(m)
	}
	w.report(m)
}

func TestOthersDoNotWaitForThoseWhoCannot(t *testing.T) {
	for _, c := range []struct {
		reason string
		spoil  func(m *machine)
		within time.Duration
	}{
		{"whose agent does not run", func(m *machine) { m.dead = true }, 25 * time.Second},
		{"whose pulls hang", func(m *machine) { m.hung = true }, 40 * time.Second},
		{"whose disk is full", func(m *machine) { m.full = true }, 40 * time.Second},
		{"whom the mirror does not serve", func(m *machine) { m.cutOff = true }, 12 * time.Second},
		{"whose pulls ask a mirror that does not serve them", func(m *machine) { m.cutOff, m.asks = true, 60 }, 40 * time.Second},
		{"whose tries hang one after the other", func(m *machine) { m.hung, m.patience = true, 20 }, 40 * time.Second},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := afterTheSeed(20)
			spoiled := func(name string) bool { return name > "n000" && name < "n009" }
			for name, m := range w.machines {
				if spoiled(name) {
					c.spoil(m)
				}
			}
			began := w.now
			for served := 0; served < 12; {
				w.run(t, 1)
				served = 0
				for name, m := range w.machines {
					if m.content[waved] != "" && !spoiled(name) {
						served++
					}
				}
				if w.now.Sub(began) > c.within {
					t.Fatalf("after %v only %d of 12 nodes were served\n%s", c.within, served, w)
				}
			}
		})
	}
}

func TestLimitOfTheClusterHoldsForAllImagesTogether(t *testing.T) {
	w := newWorld()
	w.joinMany(30)
	w.limits.MaxConcurrentPulls = 3
	images := []string{"reg/a@sha256:a", "reg/b@sha256:b", "reg/c@sha256:c", "reg/d@sha256:d"}
	w.wish("web", images...)
	for w.pullingCount() > 0 || len(w.writes) < 30*len(images) {
		w.plan()
		if got := w.pullingCount(); got > 3 {
			t.Fatalf("%d pull at a time", got)
		}
		w.round()
	}
	w.checkServed(t)
}

func TestWhoTriesAgainCountsForTheCluster(t *testing.T) {
	w := afterTheSeed(30)
	w.limits.MaxConcurrentPulls = 3
	w.still(t)
	w.cutOff("n001", 2)
	w.cutOff("n002", 3)
	w.still(t)
	if got := w.peers(waved); got != "n000 n001 n002 n003" {
		t.Errorf("admitted %q while two may pull again at any moment", got)
	}
}

func TestNodesWhoseListsAreOldCountForTheCluster(t *testing.T) {
	w := afterTheSeed(30)
	w.limits.MaxConcurrentPulls = 3
	for _, m := range w.machines {
		m.node.KubeletImages = []string{waved}
	}
	for w.pullingCount() > 0 || len(w.writes) < 29 {
		w.plan()
		if got := w.pullingCount(); got > 3 {
			t.Fatalf("%d pull at a time", got)
		}
		w.round()
	}
	w.checkServed(t)
}

func TestSmallPrefetchDoesNotWaitForALargeOne(t *testing.T) {
	w := newWorld()
	w.joinMany(50)
	w.limits.MaxConcurrentPulls = 4
	w.wish("large", "reg/a@sha256:a")
	p := w.wish("small", "reg/z@sha256:z")
	p.NodeSelector = map[string]string{"team": "z"}
	for _, name := range []string{"n047", "n048", "n049"} {
		w.machines[name].node.Labels = p.NodeSelector
	}
	w.run(t, 30)
	if got := w.peers("reg/z@sha256:z"); got != "n047 n048 n049" {
		t.Errorf("after half a minute only %q have it", got)
	}
	if got := len(strings.Fields(w.peers("reg/a@sha256:a"))); got == 50 {
		t.Error("the large one is done already: this shows nothing")
	}
}

func TestFollowingASeed(t *testing.T) {
	for _, c := range []struct {
		follow bool
		want   string
	}{{true, "n001 n002 n003 n004"}, {false, ""}} {
		w := newWorld()
		w.limits.FollowSeed = c.follow
		w.joinMany(30)
		w.wish("web", "reg/a:1")
		w.still(t)
		w.round()
		w.still(t)
		if got := w.peers("reg/a:1"); got != c.want {
			t.Errorf("follow %v: %q, want %q", c.follow, got, c.want)
		}
	}
}

func TestFollowersMakeRoomByWhatTheyHave(t *testing.T) {
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
		{"they count for three times the seed at the most", true, 4, 90, 100, 16},
		{"nobody serves more than one image", true, 1, 900, 100, 8},
		{"unless followers do not count", false, 4, 25, 100, 4},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := newWorld()
			w.joinMany(30)
			w.wish("web", "reg/a:1")
			w.still(t)
			w.round()
			w.still(t)
			w.limits.FollowSeed = c.follow
			for _, name := range []string{"n001", "n002", "n003", "n004"}[:c.count] {
				m := w.machines[name]
				m.deliver()
				w.work(m)
				s := m.status["reg/a:1"]
				s.State, s.PulledBytes, s.SizeBytes = v1alpha1.ImagePulling, c.got, c.of
				m.status["reg/a:1"] = s
				w.report(m)
			}
			w.still(t)
			if got := len(strings.Fields(w.peers("reg/a:1"))); got != c.followed {
				t.Errorf("%d follow, want %d", got, c.followed)
			}
		})
	}
}

func TestNobodyFollowsASeedThatHasNotBegun(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	w.wish("web", waved)
	w.still(t)
	if seeds, peers := w.seeds(waved), w.peers(waved); seeds != "n000" || peers != "" {
		t.Errorf("%q follow %q", peers, seeds)
	}
	w.round() // it pulls, and does not say yet how much
	seed := w.machines["n000"].cached
	s := seed[waved]
	s.SizeBytes = 0
	seed[waved] = s
	w.still(t)
	if peers := w.peers(waved); s.State != v1alpha1.ImagePulling || peers != "" {
		t.Errorf("%q follow %+v", peers, s)
	}
}

func TestNodesThatHoldTheDigestNeedNoTurn(t *testing.T) {
	w := newWorld()
	w.joinMany(50)
	for _, m := range w.machines {
		m.content["reg/a:1"] = "sha256:reg/a:1-1"
		m.node.KubeletImages = []string{"other", "reg/a:1", "reg/a@sha256:reg/a:1-1"}
	}
	w.wish("web", "reg/a:1")
	w.run(t, 1)
	w.plan()
	if got := len(strings.Fields(w.peers("reg/a:1"))); got != 50 && got != 49 {
		t.Errorf("only %d were pinned at once", got)
	}
	w.settle(t)
	w.checkServed(t)
	for name, m := range w.machines {
		if m.pulls != 0 {
			t.Errorf("%s pulled", name)
		}
	}
}

func TestNodesThatMayHoldItComeFirstAndThoseNeverHeardOfLast(t *testing.T) {
	w := newWorld()
	w.limits.Fanout = 3
	w.joinMany(8)
	p := w.wish("web", "reg/a:1")
	p.Resolved["reg/a:1"] = Resolved{"sha256:a", "1"}
	other := w.wish("other", "reg/o@sha256:o")
	other.NodeSelector = map[string]string{"known": "yes"}
	for _, name := range []string{"n004", "n005", "n006", "n007"} {
		w.machines[name].node.Labels = other.NodeSelector
		w.hold(name, "reg/o@sha256:o", "sha256:o")
	}
	w.hold("n000", "reg/a:1", "sha256:a")
	w.machines["n002"].node.KubeletImages = []string{"reg/a:1"}
	w.still(t)
	if got := w.peers("reg/a:1"); got != "n000 n002 n004 n005" {
		t.Errorf("admitted %q", got)
	}
}

func TestNodesThatGetNothingComeLastForOtherImages(t *testing.T) {
	w := afterTheSeed(30)
	w.still(t)
	w.machines["n002"].cutOff = true
	w.begin(2)
	w.wish("other", "reg/o@sha256:o")
	w.hold("n000", "reg/o@sha256:o", "sha256:o")
	w.still(t)
	if got := w.peers("reg/o@sha256:o"); got != "n000 n001 n003 n004 n005" {
		t.Errorf("admitted %q", got)
	}
}

func TestNewDigestGoesRoundLikeTheFirst(t *testing.T) {
	w := newWorld()
	w.joinMany(40)
	p := w.wish("web", "reg/a:1")
	w.settle(t)
	w.tags["reg/a:1"] = "sha256:second"
	p.Resolution = "2"
	most := 0
	for range 60 {
		w.plan()
		w.check(t)
		for _, m := range w.machines {
			if len(m.spec) == 0 {
				t.Fatalf("%s lost its pin while it waited", m.node.Name)
			}
		}
		if n := w.pullingCount(); n > most {
			most = n
		}
		if w.holders("reg/a:1", "sha256:second") == 0 && w.pullingCount() > 1+w.limits.Fanout {
			t.Fatalf("holders of the old digest count:\n%s", w)
		}
		w.round()
	}
	w.checkServed(t)
	if most < 20 {
		t.Errorf("at most %d at a time", most)
	}
}

func (w *world) holders(image, digest string) (count int) {
	for _, m := range w.machines {
		if m.content[image] == digest {
			count++
		}
	}
	return count
}
