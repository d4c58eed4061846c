// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// resolvers are the nodes that are to resolve an image, in order.
func (w *world) resolvers(image string) (names []string) {
	for _, n := range w.state().Nodes {
		if n.Entries[image].unanswered() {
			names = append(names, n.Name)
		}
	}
	return names
}

func TestTagIsResolvedOnce(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	w.join("arm", func(n *Node) { n.Platform = "linux/arm64" })
	x, y := w.wish("x", "reg/a:1"), w.wish("y", "reg/a:1")
	w.plan()
	if got := strings.Join(w.resolvers("reg/a:1"), " "); got != "arm" && got != "n000" {
		t.Fatalf("one node of the whole cluster asks for two prefetches, not %q", got)
	}
	w.settle(t)
	w.checkServed(t)
	if x.Resolved["reg/a:1"] != y.Resolved["reg/a:1"] || x.Resolved["reg/a:1"].Digest == "" {
		t.Errorf("recorded %v and %v", x.Resolved, y.Resolved)
	}
}

func TestMovedTagIsLeftAloneUntilAskedFor(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	p := w.wish("web", "reg/a:1")
	w.settle(t)
	first := w.tags["reg/a:1"]
	w.tags["reg/a:1"] = "sha256:second"
	w.join("n999") // it gets what the others have, not what the tag means by now
	w.settle(t)
	if got := w.machines["n999"].content["reg/a:1"]; got != first {
		t.Fatalf("a node that joined holds %s, not %s", got, first)
	}
	p.Resolution = "1/now"
	w.settle(t)
	w.checkServed(t)
	for name, m := range w.machines {
		if m.content["reg/a:1"] != "sha256:second" {
			t.Errorf("after the refresh %s holds %s", name, m.content["reg/a:1"])
		}
	}
}

func TestRefreshOfAnUnmovedTagCostsOneQuestion(t *testing.T) {
	w := newWorld()
	w.joinMany(4)
	p := w.wish("web", "reg/a:1")
	w.settle(t)
	clear(w.writes)
	p.Resolution = "2"
	w.settle(t)
	w.checkServed(t)
	if len(w.writes) != 1 {
		t.Errorf("besides the resolver's, specs were written: %v", w.writes)
	}
	for _, m := range w.machines {
		if m.pulls != 0 && m.pulls != 1 {
			t.Errorf("%s pulled %d times", m.node.Name, m.pulls)
		}
	}
}

func TestNewestAnswerHoldsForEverybody(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	x := w.wish("x", "reg/a:1")
	w.settle(t)
	w.tags["reg/a:1"] = "sha256:second"
	w.wish("y", "reg/a:1")
	w.settle(t)
	w.checkServed(t)
	if got := x.Resolved["reg/a:1"]; got.Digest != "sha256:second" || got.For != "1" {
		t.Errorf("the other prefetch still says %v", got)
	}
}

func TestWhileATagIsAskedForAgain(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	p := w.wish("web", "reg/a:1")
	w.settle(t)
	w.down = true
	p.Resolution = "2"
	w.join("n999")
	for range 30 {
		w.plan()
		w.round()
	}
	o := w.next().Prefetches[p.Key]
	if _, ok := o.Digests["reg/a:1"]; ok {
		t.Errorf("an image that is being resolved has a digest: %v", o.Digests)
	}
	if len(w.machines["n999"].spec) > 0 && w.machines["n999"].spec["reg/a:1"].RegistryPolicy == v1alpha1.RegistryPolicyMirror {
		t.Errorf("a new node gets a digest that may be out of date: %v", w.machines["n999"].spec)
	}
	kept := 0
	for name, m := range w.machines {
		if name != "n999" && len(m.spec) == 1 {
			kept++
		}
	}
	if kept != 3 {
		t.Errorf("nodes lost their pins while the registry was down:\n%s", w)
	}
	w.down = false
	w.settle(t)
	w.checkServed(t)
}

func TestWhoAsksAgainKeepsWhatItHolds(t *testing.T) {
	for _, c := range []struct {
		reason string
		nodes  int
		happen func(w *world, p *Prefetch)
	}{
		{"the registry is down, and nobody else can ask", 1, func(w *world, p *Prefetch) { w.down = true }},
		{"the registry is down", 3, func(w *world, p *Prefetch) { w.down = true }},
		{"the registry refuses", 3, func(w *world, p *Prefetch) { w.private = true }},
		{"the disk of the node that asks is full", 3, func(w *world, p *Prefetch) {
			w.down = true
			w.run(t, 1)
			w.machines[w.resolvers("reg/a:1")[0]].node.DiskPressure = true
		}},
		{"nobody asks any more", 3, func(w *world, p *Prefetch) {
			w.down = true
			w.run(t, 3)
			delete(w.wishes, p.Key)
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := newWorld()
			w.joinMany(c.nodes)
			other := w.wish("other", "reg/a:1")
			w.settle(t)
			held := w.tags["reg/a:1"]
			p := w.wish("web", "reg/a:1")
			c.happen(w, p)
			for range 300 {
				step := w.run(t, 1)
				if got := step.Prefetches[other.Key].Digests["reg/a:1"].Digest; got != held {
					t.Fatalf("the other prefetch is told %q", got)
				}
				for _, n := range w.state().Nodes {
					e := n.Entries["reg/a:1"]
					if e.Wanted == nil || e.Wanted.Digest != held || e.Status.State != v1alpha1.ImagePresent || e.Status.Digest != held {
						t.Fatalf("%s no longer keeps it:\n%s", n.Name, w)
					}
				}
			}
			w.join("n999") // and it can serve others
			w.run(t, 30)
			if w.machines["n999"].content["reg/a:1"] != held || w.machines["n999"].status["reg/a:1"].Source != v1alpha1.SourceMirror {
				t.Errorf("a node that joined is not served by it:\n%s", w)
			}
			w.down, w.private = false, false
			w.tags["reg/a:1"] = "sha256:second"
			p.Resolution, w.wishes[p.Key] = "2", p
			for _, m := range w.machines {
				m.recover()
			}
			w.settle(t)
			w.checkServed(t)
			if got := other.Resolved["reg/a:1"].Digest; got != "sha256:second" {
				t.Errorf("the new answer is %q", got)
			}
		})
	}
}

func TestWhoIsBringingAnImageGoesOnWhileItAsksAgain(t *testing.T) {
	w := newWorld()
	w.joinMany(1)
	other := w.wish("other", "reg/a:1")
	w.run(t, 2)
	digest := other.Resolved["reg/a:1"].Digest
	w.wish("web", "reg/a:1")
	w.plan()
	if got := w.machines["n000"].spec["reg/a:1"]; got.Digest != digest || len(w.resolvers("reg/a:1")) != 1 {
		t.Errorf("it is asked for %+v, and it was bringing %s", got, digest)
	}
	w.settle(t)
	w.checkServed(t)
}

func TestThoseWhoHoldItAskInTurnAndRest(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	w.wish("other", "reg/a:1")
	w.settle(t)
	w.down = true
	w.wish("web", "reg/a:1")
	asked := make(map[string]int)
	last := ""
	for range 180 {
		w.run(t, 1)
		for _, name := range w.resolvers("reg/a:1") {
			if name != last {
				asked[name]++
			}
			last = name
		}
	}
	for name := range w.machines {
		if n := asked[name]; n < 2 || n > 4 { // once a minute
			t.Errorf("%s asked %d times in three minutes", name, n)
		}
	}
}

func TestWhoAskedInVainIsDoneBeforeTheNextAsks(t *testing.T) {
	for _, c := range []struct {
		reason string
		happen func(w *world, p *Prefetch)
	}{
		{"it was too slow", func(w *world, _ *Prefetch) { w.now = w.now.Add(w.limits.SeedTimeout) }},
		{"it was, and the controller is a new one", func(w *world, _ *Prefetch) {
			w.now = w.now.Add(w.limits.SeedTimeout)
			w.still(t)
			w.restart()
		}},
		{"who wanted to know is gone, and another wants to know", func(w *world, p *Prefetch) {
			delete(w.wishes, p.Key)
			w.still(t)
			w.wish("third", "reg/a:1")
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := newWorld()
			w.joinMany(3)
			w.wish("other", "reg/a:1")
			w.settle(t)
			p := w.wish("web", "reg/a:1")
			w.plan()
			first := w.resolvers("reg/a:1")[0]
			m := w.machines[first]
			m.deliver()
			m.observed = m.viewGeneration // it asks; what it is told nobody hears
			w.report(m)
			w.still(t)
			c.happen(w, p)
			w.still(t)
			if got := w.resolvers("reg/a:1"); len(got) > 0 {
				t.Errorf("%v asks while %s may be pulling\n%s", got, first, w)
			}
			m.deliver()
			w.work(m)
			w.report(m)
			w.still(t)
			if got := w.resolvers("reg/a:1"); len(got) != 1 {
				t.Errorf("%v ask once %s has heard", got, first)
			}
		})
	}
}

func TestAnswerOutlivesACrash(t *testing.T) {
	w := newWorld()
	w.joinMany(2)
	p := w.wish("web", "reg/a:1")
	w.plan()
	w.round()
	// The resolver has answered; the controller dies before it records that, and the tag moves.
	w.restart()
	first := w.tags["reg/a:1"]
	w.tags["reg/a:1"] = "sha256:second"
	w.settle(t)
	w.checkServed(t)
	if got := p.Resolved["reg/a:1"].Digest; got != first {
		t.Errorf("it was asked twice: %s", got)
	}
}

func TestRecordsThatDisagree(t *testing.T) {
	w := newWorld()
	w.joinMany(3)
	x, y := w.wish("x", "reg/a:1"), w.wish("y", "reg/a:1")
	x.Resolved["reg/a:1"], y.Resolved["reg/a:1"] = Resolved{"sha256:old", "1"}, Resolved{"sha256:new", "1"}
	retries := int32(3)
	for _, name := range []string{"n000", "n001"} {
		w.machines[name].spec["reg/a:1"] = v1alpha1.NodeImage{Name: "reg/a:1", Digest: "sha256:new",
			RegistryPolicy: v1alpha1.RegistryPolicyMirror, ImageDownloadRetryLimit: &retries, Retention: v1alpha1.RetentionPinned}
	}
	step := Next(w.state(), w.limits)
	for key, o := range step.Prefetches {
		if o.Digests["reg/a:1"].Digest != "sha256:new" {
			t.Errorf("%s goes with %v, not with what most nodes are asked for", key, o.Digests)
		}
	}
}

func TestResolverIsOneThatHoldsTheImage(t *testing.T) {
	w := newWorld()
	w.joinMany(5)
	w.machines["n003"].node.KubeletImages = []string{"reg/a:1"}
	w.wish("web", "reg/a:1")
	w.plan()
	if got := strings.Join(w.resolvers("reg/a:1"), " "); got != "n003" {
		t.Errorf("%q asks, not the node whose kubelet lists the image", got)
	}
}

func TestManyWhoAskAtOnceKeepWithinTheAPI(t *testing.T) {
	w := newWorld()
	w.joinMany(2)
	for i := range 500 {
		w.wish(strings.Repeat("x", i+1), "reg/a:1")
	}
	for range 5 {
		w.plan()
		for name, m := range w.machines {
			if request := m.spec["reg/a:1"].Request; len(request) > 2048 {
				t.Fatalf("the request of %s has %d characters", name, len(request))
			}
		}
		w.round()
	}
	w.settle(t)
	w.checkServed(t)
}

func TestImageNamedByDigestIsNeverAskedFor(t *testing.T) {
	w := newWorld()
	w.joinMany(2)
	p := w.wish("web", "reg/a@sha256:abc")
	step, _ := w.plan()
	if got := step.Prefetches[p.Key].Digests["reg/a@sha256:abc"]; got != (Resolved{"sha256:abc", "1"}) {
		t.Errorf("its digest is in its name, not %v", got)
	}
	if got := w.resolvers("reg/a@sha256:abc"); got != nil {
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
