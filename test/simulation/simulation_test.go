// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPipeIsSharedEvenly(t *testing.T) {
	c := &clock{}
	p := &pipe{clock: c, bandwidth: 100}
	ends := make(map[string]time.Duration)
	end := func(name string) func() { return func() { ends[name] = c.now } }
	p.send(300, end("long"))
	p.send(100, end("short"))
	c.after(time.Second, func() { p.send(50, end("late")) })
	canceled := p.send(1000, end("canceled"))
	c.after(2*time.Second, canceled.cancel)
	c.run(time.Hour, func() bool { return false })

	// Three share it for 1 s (33 each), four for 1 s (25 each); then three have 242, 42
	// and 25 to go: the late one is done after 0.75 s, the short one 0.33 s later.
	for name, want := range map[string]float64{"late": 2.75, "short": 3.083, "long": 5.083} {
		if got := ends[name].Seconds(); math.Abs(got-want) > 0.01 {
			t.Errorf("%s ends after %.3f s, want %.3f", name, got, want)
		}
	}
	if _, ok := ends["canceled"]; ok {
		t.Error("what was canceled ended")
	}
	if want := 450 + 1000/30. + 25; math.Abs(p.carried-want) > 2 {
		t.Errorf("it carried %.1f bytes, want %.1f", p.carried, want)
	}
}

func TestEveryoneFromUpstreamIsLimitedByTheUplink(t *testing.T) {
	m := scenarios[0]
	got := everyoneFromUpstream(m, 50)
	want := 50 * m.size() / m.uplink
	if got.copies != 50 || math.Abs(got.all.Seconds()-want) > 0.02*want {
		t.Errorf("got %+v, want 50 copies in %.0f s", got, want)
	}
	if one := m.onePull(); one < m.optimum(1) || one > m.optimum(1)+time.Second {
		t.Errorf("one node takes %v, and the bound is %v", one, m.optimum(1))
	}
}

// A mirror finds the holders of a layer, and what Spegel does then, its measured misses included.
func TestTheMirrorIsSpegel(t *testing.T) {
	const askers, layer = 4000, 0
	for _, c := range []struct {
		reason   string
		holders  int
		lost     int // of the holders, switched off
		falls    float64
		fresh    bool
		at       []time.Duration // when each asks; the last is looked at
		answered float64         // the share
	}{
		{"what is there is found", 1, 0, 0, false, []time.Duration{0}, 1},
		{"what nobody has is missed", 0, 0, 0, false, []time.Duration{0}, 0},
		{"a search in ten is given up", 5, 0, 0.1, false, []time.Duration{0}, 0.9},
		{"with one holder a second request is answered", 1, 0, 0, false, []time.Duration{0, 0}, 1},
		{"with two, 22 of 40 are missed", 2, 0, 0, false, []time.Duration{0, 4 * time.Second}, 18. / 40},
		{"with three or four, 60 of 80", 3, 0, 0, false, []time.Duration{0, 4 * time.Second}, 20. / 80},
		{"it keeps three and no more", 9, 0, 0, false, []time.Duration{0, 4 * time.Second}, 20. / 80},
		{"after 5 s it looks again", 9, 0, 0, false, []time.Duration{0, 5 * time.Second}, 1},
		{"one that keeps nothing answers again and again", 9, 0, 0, true, []time.Duration{0, 0, 0}, 1},
		{"a holder that is gone is passed over for the next", 2, 1, 0, false, []time.Duration{0}, 1},
		{"three that are gone are a miss", 3, 3, 0, false, []time.Duration{0}, 0},
	} {
		s := newSimulation(model{layers: 1, falseMiss: c.falls, fresh: c.fresh}, askers+c.holders)
		for i, n := range s.nodes[askers:] {
			s.holders[layer] = append(s.holders[layer], n)
			n.gone = i < c.lost
		}
		answered := 0.0
		for i, at := range c.at {
			s.clock.now = at
			for _, n := range s.nodes[:askers] {
				if s.mirror(n, layer) != nil && i == len(c.at)-1 {
					answered++
				}
			}
		}
		if got := answered / askers; math.Abs(got-c.answered) > 0.03 || (c.answered == 1 || c.answered == 0) && got != c.answered {
			t.Errorf("%s: %.3f are answered, want %.3f", c.reason, got, c.answered)
		}
	}
}

func TestTheMirrorRepeatsAMissForTwoAndAHalfSeconds(t *testing.T) {
	s := newSimulation(model{layers: 1}, 2)
	asker, holder := s.nodes[0], s.nodes[1]
	if s.mirror(asker, 0) != nil {
		t.Fatal("it found what nobody has")
	}
	s.holders[0] = append(s.holders[0], holder)
	for at, found := range map[time.Duration]bool{2400 * time.Millisecond: false, 2500 * time.Millisecond: true} {
		before := asker.lookups[0]
		s.clock.now = at
		if got := s.mirror(asker, 0) != nil; got != found {
			t.Errorf("after %v: found %v, want %v", at, got, found)
		}
		asker.lookups[0] = before
	}
}

// The writes of one node that pulls for 44 s: its spec; reports after 1, 3, 7, 15 and 31 s; and
// that the image is there. One of 0.9 s has nothing to report on the way.
func TestWritesAreCounted(t *testing.T) {
	slow := scenarios[0]
	short := slow
	short.layers, short.layer = 1, mebibyte
	for _, c := range []struct {
		m    model
		want float64
	}{{slow, 7}, {short, 2}} {
		if got := planned(c.m, 1, limits(4, true)); got.writes != c.want {
			t.Errorf("a pull of %v costs %v writes, want %v", c.m.onePull(), got.writes, c.want)
		}
	}
}

func TestWithoutFaultsTheImageComesOnce(t *testing.T) {
	for _, m := range scenarios[:2] {
		for _, nodes := range []int{1, 2, 10, 300} {
			for _, fanout := range []int{1, 4, math.MaxInt32} {
				for _, follow := range []bool{true, false} {
					got := planned(m, nodes, limits(fanout, follow))
					if got.copies != 1 || got.all < m.optimum(nodes) {
						t.Errorf("%s, %d nodes, fanout %d, follow %v: %+v, and the bound is %v", m.name, nodes, fanout, follow, got, m.optimum(nodes))
					}
					if again := planned(m, nodes, limits(fanout, follow)); again != got {
						t.Errorf("the same run came to %+v, then to %+v", got, again)
					}
				}
			}
		}
	}
}

func TestWithFaultsEverybodyWhoCanIsServed(t *testing.T) {
	m := scenarios[2]
	m.deaf = 0.1
	for _, nodes := range []int{2, 10, 300} {
		for _, fanout := range []int{1, 4, math.MaxInt32} {
			got := planned(m, nodes, limits(fanout, true))
			if got.all == 0 || got.copies > 2 {
				t.Errorf("%d nodes, fanout %d: %+v", nodes, fanout, got)
			}
		}
	}
}

// TestDefaults asserts what docs/simulation.md says of the default limits.
func TestDefaults(t *testing.T) {
	slow, fast, faults := scenarios[0], scenarios[1], scenarios[2]
	two := limits(4, true)
	two.UpstreamPullers = 2
	eight := fast
	eight.peerStreams = 8
	for _, c := range []struct {
		claim      string
		this, that outcome
		times      float64
	}{
		{"a fanout of 4 is faster than 1", planned(slow, 1000, limits(4, true)), planned(slow, 1000, limits(1, true)), 1.2},
		{"without a bound all ask the one node that has the last layer", planned(slow, 1000, limits(4, true)), planned(slow, 1000, limits(math.MaxInt32, true)), 5},
		{"with a fast uplink a fanout of 16 is slower", planned(fast, 1000, limits(4, true)), planned(fast, 1000, limits(16, true)), 1.2},
		{"following the seed saves time", planned(slow, 100, limits(4, true)), planned(slow, 100, limits(4, false)), 1.05},
		{"a second seed takes its half of a slow uplink", planned(slow, 1000, limits(4, true)), planned(slow, 1000, two), 1.5},
		{"but is there when the first is lost", planned(faults, 1000, two), planned(faults, 1000, limits(4, true)), 1.5},
		{"eight layers at a time are slower", planned(fast, 1000, limits(4, true)), planned(eight, 1000, limits(4, true)), 1.5},
		{"all is far better than everyone from upstream", planned(slow, 1000, limits(4, true)), everyoneFromUpstream(slow, 1000), 100},
	} {
		if c.this.all.Seconds()*c.times > c.that.all.Seconds() {
			t.Errorf("%s: %v and %v", c.claim, c.this.all, c.that.all)
		}
	}
}

// Of few nodes the middle one of five runs is shown, of many the first.
func TestTheMiddleRunIsShown(t *testing.T) {
	times := []time.Duration{4, 0, 1, 3, 2} // 0 is never
	way := way{"some way", func(m model, _ int) outcome { return outcome{all: times[m.draw], copies: float64(m.draw)} }}
	for nodes, want := range map[int]outcome{100: {all: 3, copies: 3}, 101: {all: 4, copies: 0}} {
		if got := middle(way, scenarios[0], nodes); got != want {
			t.Errorf("of %d nodes %+v is shown, want %+v", nodes, got, want)
		}
	}
}

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(&out, "2, 5"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 nodes", "5 nodes", "everyone from upstream", "fanout ∞", "no plan can beat", "With faults"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	for _, bad := range []string{"", "0", "ten", "10,,20"} {
		if err := run(&out, bad); err == nil {
			t.Errorf("-nodes %q was taken", bad)
		}
	}
}

// What the document shows is what the plan does now: each line for 10 and 100 nodes begins
// one of its lines, in order. The larger sizes take too long here.
func TestTheDocumentShowsTheTables(t *testing.T) {
	document, err := os.ReadFile("../../docs/simulation.md")
	if err != nil {
		t.Fatal(err)
	}
	var tables strings.Builder
	if err := run(&tables, "10,100"); err != nil {
		t.Fatal(err)
	}
	shown := strings.Split(string(document), "\n")
	for line := range strings.Lines(tables.String()) {
		want := strings.Fields(line)
		at := slices.IndexFunc(shown, func(line string) bool {
			got := strings.Fields(line)
			return len(got) >= len(want) && slices.Equal(got[:len(want)], want)
		})
		if at < 0 {
			t.Fatalf("docs/simulation.md does not show, or not in this order: %s\ntake over what `make simulate` prints", strings.TrimSpace(line))
		}
		shown = shown[at+1:]
	}
}
