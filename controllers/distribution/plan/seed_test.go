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
		arrange func(w *world)
		want    string
	}{
		{"the first name, where nothing speaks for another", func(*world) {}, "n000"},
		{"as many as the limit allows", func(w *world) { w.limits.UpstreamPullers = 3 }, "n000 n001 n002"},
		{"one on each platform", func(w *world) { w.join("arm", func(n *Node) { n.Platform = "linux/arm64" }) }, "arm n000"},
		{"the node whose kubelet lists it: nothing has to come at all", func(w *world) { w.machines["n003"].node.KubeletImages = []string{image} }, "n003"},
		{"the node that holds most, since layers are shared", func(w *world) {
			w.wish("other", "reg/o@sha256:o", "reg/p@sha256:p")
			w.hold("n001", "reg/o@sha256:o", "sha256:o")
			w.hold("n002", "reg/o@sha256:o", "sha256:o")
			w.hold("n002", "reg/p@sha256:p", "sha256:p")
		}, "n002"},
		{"rather the seed of another image of the same prefetch", func(w *world) {
			w.wish("other", "reg/o@sha256:o", "reg/p@sha256:p")
			w.hold("n001", "reg/o@sha256:o", "sha256:o")
			w.hold("n001", "reg/p@sha256:p", "sha256:p")
			w.machines["n003"].node.KubeletImages = []string{"reg/_@sha256:_"}
			w.wish("web", "reg/_@sha256:_", image)
		}, "n003"},
		{"the node whose agent reports it although it is no longer asked to have it", func(w *world) {
			w.wish("other", "reg/o@sha256:o", "reg/p@sha256:p")
			w.hold("n001", "reg/o@sha256:o", "sha256:o")
			w.hold("n003", image, digest)
			delete(w.machines["n003"].spec, image)
		}, "n003"},
		{"the node with credentials: a team without them must not stop another", func(w *world) {
			w.machines["n004"].node.Labels = map[string]string{"team": "y"}
			p := w.wish("secret", image)
			p.NodeSelector = map[string]string{"team": "y"}
			p.PullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "y", Name: "key"}}
		}, "n004"},
		{"rather the node that needs no credentials, because it holds it", func(w *world) {
			w.machines["n003"].node.KubeletImages = []string{image}
			w.machines["n004"].node.Labels = map[string]string{"team": "y"}
			p := w.wish("secret", image)
			p.NodeSelector = map[string]string{"team": "y"}
			p.PullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "y", Name: "key"}}
		}, "n003"},
		{"never one that is not Ready", func(w *world) { w.machines["n000"].node.Ready = false }, "n001"},
		{"never a cordoned one", func(w *world) { w.machines["n000"].node.Unschedulable = true }, "n001"},
		{"never one under disk pressure", func(w *world) { w.machines["n000"].node.DiskPressure = true }, "n001"},
		{"never one whose runtime is not supported", func(w *world) { w.machines["n000"].node.Unsupported = true }, "n001"},
		{"nor one whose runtime does not answer", func(w *world) { w.machines["n000"].node.RuntimeDown = true }, "n001"},
		{"never one whose agent is silent", func(w *world) {
			m := w.machines["n000"]
			m.generation, m.heard = 1, w.now.Add(-w.limits.AgentTimeout)
		}, "n001"},
		{"a node that is doubtful as long as its time is not up", func(w *world) {
			m := w.machines["n000"]
			m.generation, m.heard = 1, w.now.Add(-w.limits.AgentTimeout+1)
		}, "n000"},
		{"nobody, where a node holds it", func(w *world) { w.hold("n004", image, digest) }, ""},
		{"somebody yet, where the only holder is not Ready", func(w *world) {
			w.hold("n004", image, digest)
			w.machines["n004"].node.Ready = false
		}, "n000"},
		{"the platform without a holder has its seed", func(w *world) {
			w.hold("n004", image, digest)
			w.join("arm", func(n *Node) { n.Platform = "linux/arm64" })
		}, "arm"},
		{"a holder of another digest is none, though it has the layers that stayed", func(w *world) { w.hold("n004", image, "sha256:old") }, "n004"},
		{"who has followed the last seed furthest goes on where it stopped", func(w *world) {
			for name, bytes := range map[string]int64{"n001": 10, "n003": 30, "n002": 20} {
				w.hold(name, image, digest)
				s := w.machines[name].cached[image]
				s.State, s.PulledBytes = v1alpha1.ImagePulling, bytes
				w.machines[name].cached[image] = s
			}
		}, "n003"},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := newWorld()
			w.joinMany(5)
			w.wish("web", image)
			c.arrange(w)
			w.plan()
			w.check(t)
			if got := w.seeds(image); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// hold has a node's agent report an image that its spec asks for.
func (w *world) hold(name, image, digest string) {
	m, retries := w.machines[name], int32(3)
	m.spec[image] = v1alpha1.NodeImage{Name: image, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyMirror,
		ImageDownloadRetryLimit: &retries, Retention: v1alpha1.RetentionPinned}
	m.content[image] = digest
	m.generation, m.observed = m.generation+1, m.generation+1
	m.status[image] = v1alpha1.NodeImageStatus{Name: image, State: v1alpha1.ImagePresent, Digest: digest, Source: v1alpha1.SourceMirror}
	m.seen[image] = m.spec[image]
	w.report(m)
}

func TestImagesOfOnePrefetchShareTheirSeed(t *testing.T) {
	w := newWorld()
	w.joinMany(5)
	w.machines["n003"].node.KubeletImages = []string{"reg/a:1"}
	w.wish("web", "reg/a:1", "reg/b:1", "reg/c:1")
	w.plan()
	for _, image := range []string{"reg/a:1", "reg/b:1", "reg/c:1"} {
		if got := w.seeds(image); got != "n003" {
			t.Errorf("the seed of %s is %q", image, got)
		}
	}
}

func TestSeedIsReplaced(t *testing.T) {
	limits := DefaultLimits()
	for _, c := range []struct {
		reason string
		fail   func(w *world, m *machine)
		within time.Duration
	}{
		{"when its node is gone, at once", func(w *world, m *machine) { delete(w.machines, m.node.Name) }, 0},
		{"when its node is not Ready, once its agent has heard of it", func(_ *world, m *machine) { m.node.Ready = false }, 2 * time.Second},
		{"when its node is not Ready and cannot hear of it, after the agent's time", func(_ *world, m *machine) { m.node.Ready, m.dead = false, true }, limits.AgentTimeout + 3*time.Second},
		{"when its runtime does not answer any more, once its agent has heard of it", func(_ *world, m *machine) { m.hung, m.node.RuntimeDown = true, true }, 2 * time.Second},
		{"when its pull fails for good", func(_ *world, m *machine) { m.offline = true }, 10 * time.Second},
		{"when it makes no progress, after the seed's time", func(_ *world, m *machine) { m.hung = true }, limits.SeedTimeout + 5*time.Second},
		{"when it tries again and again and nothing comes, no later", func(_ *world, m *machine) { m.hung, m.patience = true, 45 }, limits.SeedTimeout + 5*time.Second},
		{"when its agent dies in the middle, after the seed's time and the agent's", func(_ *world, m *machine) { m.dead = true }, limits.SeedTimeout + limits.AgentTimeout + 5*time.Second},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := newWorld()
			w.joinMany(3)
			w.wish("web", "reg/a:1")
			w.run(t, 2)
			if got := w.seeds("reg/a:1"); got != "n000" {
				t.Fatalf("%q is the seed", got)
			}
			began := w.now
			c.fail(w, w.machines["n000"])
			for w.seeds("reg/a:1") != "n001" {
				before := w.seeds("reg/a:1")
				_, changed := w.plan()
				w.check(t)
				if after := w.seeds("reg/a:1"); before != "" && after != "" && before != after && w.machines[before] != nil {
					t.Fatalf("%s was relieved and %s appointed in one step", before, after)
				}
				if w.round(); w.now.Sub(began) > 10*time.Minute && !changed {
					t.Fatalf("it never was\n%s", w)
				}
			}
			if took := w.now.Sub(began) - time.Second; took > c.within {
				t.Errorf("it took %v, not %v", took, c.within)
			}
			w.settle(t)
			for _, name := range []string{"n001", "n002"} {
				if w.machines[name].content["reg/a:1"] == "" {
					t.Errorf("%s was never served", name)
				}
			}
		})
	}
}

func TestPlanWakesForEachTimeout(t *testing.T) {
	w := newWorld()
	w.joinMany(2)
	w.wish("web", "reg/a:1")
	w.plan()
	step := w.still(t)
	if want := w.now.Add(answerTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("a node that was just told: wake at %v, want %v", step.WakeAt, want)
	}
	w.now = w.now.Add(answerTimeout)
	step = w.still(t)
	if want := w.now.Add(w.limits.AgentTimeout - answerTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("an agent that says nothing: wake at %v, want %v", step.WakeAt, want)
	}
	w.round()
	w.plan()
	w.round()
	if step, want := w.still(t), w.machines["n000"].progress["reg/a:1"].Add(w.limits.SeedTimeout); !step.WakeAt.Equal(want) {
		t.Errorf("a seed that pulls: wake at %v, want %v", step.WakeAt, want)
	}
	w.settle(t)
	if step := w.still(t); !step.WakeAt.IsZero() {
		t.Errorf("everything is done, and it wakes at %v", step.WakeAt)
	}
}

func TestFailingNodesAreTriedOnceEachBeforeAnyoneTwice(t *testing.T) {
	w := newWorld()
	w.joinMany(24)
	var want []string
	for i := range 20 {
		name := fmt.Sprintf("n%03d", i)
		w.machines[name].offline = true
		want = append(want, name)
	}
	w.wish("web", "reg/a:1")
	var tried []string
	for range 300 {
		w.run(t, 1)
		if seed := w.seeds("reg/a:1"); seed != "" && (len(tried) == 0 || tried[len(tried)-1] != seed) {
			tried = append(tried, seed)
		}
	}
	if got := strings.Join(tried, " "); got != strings.Join(append(want, "n020"), " ") {
		t.Errorf("tried %s", got)
	}
	w.settle(t)
	w.checkServed(t)
}

func TestFailedSeedStaysInSightWhileNobodyCanTakeOver(t *testing.T) {
	w := newWorld()
	w.joinMany(1)
	w.machines["n000"].offline = true
	w.wish("web", "reg/a:1")
	w.run(t, 20)
	if m := w.machines["n000"]; m.status["reg/a:1"].State != v1alpha1.ImageFailed || w.seeds("reg/a:1") != "n000" {
		t.Fatalf("why nothing moves is not to be seen:\n%s", w)
	}
	w.machines["n000"].offline = false
	w.settle(t) // after a rest it tries again by itself
	w.checkServed(t)
}

func TestRefusalOfTheRegistry(t *testing.T) {
	setUp := func() (*world, *Prefetch) {
		w := newWorld()
		w.joinMany(10)
		p := w.wish("web", "reg/a:1")
		p.PullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "team", Name: "mine"}}
		w.tags["reg/a:1"] = ""
		w.run(t, 10)
		return w, p
	}
	t.Run("is believed once a second node got it, and reported", func(t *testing.T) {
		w, p := setUp()
		if got := w.asked("reg/a:1"); got != minRefusals {
			t.Errorf("%d nodes were sent to ask", got)
		}
		if o := w.next().Prefetches[p.Key]; len(o.Refused) != 1 || o.Refused[0] != "reg/a:1" {
			t.Errorf("the outcome is %+v", o)
		}
		if w.machines[w.seeds("reg/a:1")].status["reg/a:1"].Reason != v1alpha1.ReasonImageNotFound {
			t.Errorf("the reason is not to be seen:\n%s", w)
		}
	})
	for _, c := range []struct {
		reason string
		change func(w *world, p *Prefetch)
		after  int
	}{
		{"is asked for again on a refresh", func(_ *world, p *Prefetch) { p.Resolution = "1/again" }, 15},
		{"is asked for again when another prefetch wants it", func(w *world, _ *Prefetch) {
			w.wish("other", "reg/a:1")
			w.tags["reg/a:1"] = "sha256:found"
		}, 15},
		{"is asked for again with other credentials", func(_ *world, p *Prefetch) {
			p.PullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "team", Name: "key"}}
		}, 15},
		{"is asked for again after a rest", func(*world, *Prefetch) {}, int(refusalBackoff/time.Second) + 15},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w, p := setUp()
			w.tags["reg/a:1"] = "sha256:found"
			c.change(w, p)
			w.run(t, c.after)
			w.checkServed(t)
		})
	}
	t.Run("is asked for less and less often", func(t *testing.T) {
		w, _ := setUp()
		w.run(t, 3600)
		asked := 0
		for _, attempt := range w.state().Memory.images["reg/a:1"].failures {
			asked += attempt.refusals
		}
		// Twice; 15 s, 30 s and so on until 8 min later; and then every ten minutes.
		if asked < 10 || asked > 12 {
			t.Errorf("%d times in an hour", asked)
		}
	})
	t.Run("is asked for again where another image of the prefetch is coming to, since they may share layers", func(t *testing.T) {
		w := newWorld()
		w.joinMany(6)
		w.wish("web", "reg/a:1", "reg/b:1")
		w.tags["reg/b:1"] = ""
		for _, m := range w.machines {
			m.hung = true // so that the seed of the other image stays one
		}
		w.run(t, 10)
		if got := w.asked("reg/b:1"); w.seeds("reg/a:1") != "n000" || got != minRefusals {
			t.Fatalf("%d nodes were refused\n%s", got, w)
		}
		w.tags["reg/b:1"] = "sha256:found"
		w.run(t, int(refusalBackoff/time.Second)+5)
		if got := w.seeds("reg/b:1"); got != "n000" {
			t.Errorf("%s brings it\n%s", got, w)
		}
	})
	t.Run("of one team's credentials says nothing of another's", func(t *testing.T) {
		w := newWorld()
		w.joinMany(6)
		w.private = true
		bad := w.wish("bad", "reg/a:1")
		bad.PullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "x", Name: "old"}, {Namespace: "x", Name: "older"}}
		bad.NodeSelector = map[string]string{"team": "x"}
		good := w.wish("good", "reg/a:1")
		good.PullSecrets = []v1alpha1.NamespacedSecretReference{goodKey}
		good.NodeSelector = map[string]string{"team": "y"}
		for name, m := range w.machines {
			m.node.Labels = bad.NodeSelector
			if name == "n005" {
				m.node.Labels = good.NodeSelector
			}
		}
		w.run(t, 40)
		w.checkServed(t)
	})
}

// asked counts the nodes whose agent was ever asked for an image.
func (w *world) asked(image string) (count int) {
	for _, m := range w.machines {
		if w.writes[m.node.Name+" "+image] > 0 {
			count++
		}
	}
	return count
}

func TestSeedThatIsDoneIsASeedNoLonger(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	w.wish("web", "reg/a:1")
	w.settle(t)
	if got := w.seeds("reg/a:1"); got != "" {
		t.Fatalf("%q would go upstream if its image were deleted", got)
	}
	clear(w.machines["n000"].content)
	w.settle(t)
	w.checkServed(t)
	if got := w.machines["n000"].status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
		t.Errorf("it came again from %s", got)
	}
}

func TestSeedOfADigestThatIsSupersededStops(t *testing.T) {
	w := newWorld()
	w.joinMany(2)
	w.join("arm", func(n *Node) { n.Platform = "linux/arm64" })
	p := w.wish("web", "reg/a:1")
	p.Resolved["reg/a:1"] = Resolved{"sha256:first", "1"}
	w.machines["n001"].node.KubeletImages = []string{"reg/a:1"}
	for _, m := range w.machines {
		m.hung = true
	}
	w.run(t, 2)
	if got := w.seeds("reg/a:1"); got != "arm n001" {
		t.Fatalf("%q are seeds", got)
	}
	p.Resolution = "2"
	w.tags["reg/a:1"] = "sha256:second"
	w.still(t)
	w.round() // one of them answers
	w.still(t)
	for _, name := range []string{"arm", "n001"} {
		if e, ok := w.machines[name].spec["reg/a:1"]; ok && e.Digest == "sha256:first" {
			t.Errorf("%s goes on pulling what nobody wants any more: %+v", name, e)
		}
	}
}

func TestCordonedSeedMayFinish(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	w.wish("web", "reg/a:1")
	w.run(t, 2)
	w.machines["n000"].node.Unschedulable = true
	w.settle(t)
	w.checkServed(t)
	if got := w.machines["n000"].content["reg/a:1"]; got == "" {
		t.Error("the pull was thrown away")
	}
	for _, name := range []string{"n001", "n002"} {
		if got := w.machines[name].status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
			t.Errorf("%s got it from %s", name, got)
		}
	}
}

func TestWithoutAMirror(t *testing.T) {
	setUp := func(fallback MirrorFallback) (*world, *Prefetch) {
		w := newWorld()
		w.limits.MirrorFallback = fallback
		w.joinMany(6)
		w.dry = true
		return w, w.wish("web", "reg/a:1", "reg/b:1")
	}
	t.Run("everybody is served in the end, one upstream pull at a time, and it is said", func(t *testing.T) {
		w, p := setUp(FallbackUpstream)
		w.heedful = true
		w.settle(t)
		w.checkServed(t)
		if !w.next().Prefetches[p.Key].WithoutMirror {
			t.Error("the outcome does not say so")
		}
	})
	t.Run("nobody else goes upstream if that is not wanted", func(t *testing.T) {
		w, p := setUp(FallbackNever)
		w.run(t, 300)
		for name, m := range w.machines {
			if name != "n000" && (m.content["reg/a:1"] != "" || m.status["reg/a:1"].State != v1alpha1.ImageFailed) {
				t.Errorf("%s: %+v", name, m.status["reg/a:1"])
			}
		}
		if !w.next().Prefetches[p.Key].WithoutMirror {
			t.Error("the outcome does not say so")
		}
	})
	t.Run("one node that the mirror fails says nothing of the mirror", func(t *testing.T) {
		w, p := setUp(FallbackUpstream)
		w.dry = false
		w.machines["n003"].cutOff = true
		w.settle(t)
		w.checkServed(t)
		if got := w.machines["n003"].status["reg/a:1"].Source; got != v1alpha1.SourceUpstream {
			t.Errorf("it came from %s", got)
		}
		if w.next().Prefetches[p.Key].WithoutMirror {
			t.Error("the outcome says that there is no mirror")
		}
	})
}

func TestMissWhileNobodyHeldTheImageIsNoReasonToGoUpstream(t *testing.T) {
	missed := func(t *testing.T) (w *world, seed, peer *machine) {
		w = newWorld()
		w.joinMany(4)
		w.wish("web", "reg/a:1").RetryLimit = 0
		seed, peer = w.machines["n000"], w.machines["n001"]
		w.run(t, 1)
		w.still(t)
		seed.hung = true
		w.run(t, 2) // the peers follow, and find nothing
		if peer.cached["reg/a:1"].Reason != v1alpha1.ReasonNotOnMirror {
			t.Fatalf("nothing was missed:\n%s", w)
		}
		return w, seed, peer
	}
	t.Run("it is asked again, once it has heard that it was taken back", func(t *testing.T) {
		w, _, peer := missed(t)
		w.still(t)
		if _, asked := peer.spec["reg/a:1"]; asked || w.writes["n001 reg/a:1"] != 2 {
			t.Fatalf("asked: %v, written: %v", asked, w.writes)
		}
		peer.deliver()
		w.work(peer)
		w.report(peer)
		w.still(t)
		if got := peer.spec["reg/a:1"].RegistryPolicy; got != v1alpha1.RegistryPolicyMirror {
			t.Errorf("it is asked for %q", got)
		}
	})
	t.Run("nor is it when both are seen at once", func(t *testing.T) {
		w, seed, peer := missed(t)
		seed.hung = false
		for range layers {
			w.now = w.now.Add(time.Second)
			w.work(seed)
			w.report(seed)
		}
		w.plan()
		if _, asked := peer.spec["reg/a:1"]; asked || seed.status["reg/a:1"].State != v1alpha1.ImagePresent {
			t.Errorf("it was not taken back:\n%s", w)
		}
		w.settle(t)
		w.checkServed(t)
		if got := peer.status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
			t.Errorf("it came from %s", got)
		}
	})
}

func TestFallbackThatFailsTriesTheMirrorAgain(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	w.machines["n001"].cutOff, w.machines["n001"].offline = true, true
	w.wish("web", "reg/a:1")
	w.run(t, 60)
	if w.machines["n001"].content["reg/a:1"] != "" {
		t.Fatal("this shows nothing")
	}
	w.machines["n001"].cutOff = false
	w.settle(t)
	w.checkServed(t)
	if got := w.machines["n001"].status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
		t.Errorf("it came from %s", got)
	}
}
