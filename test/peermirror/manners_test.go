// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// clocked are manners whose clock the test moves.
func clocked(seed uint64) (*Manners, func(time.Duration)) {
	now := time.Unix(1_000_000, 0)
	m := Spegel(seed, "10.0.0.1:5000")
	m.now = func() time.Time { return now }
	return m, func(d time.Duration) { now = now.Add(d) }
}

// nodes are the holders that there are, and how often they were searched for.
type nodes struct {
	names    []string
	searches int
}

func (n *nodes) search(most int) []string {
	n.searches++
	return n.names[:min(most, len(n.names))]
}

func TestLookups(t *testing.T) {
	m, pass := clocked(1)
	var there nodes
	for _, step := range []struct {
		reason   string
		after    time.Duration
		names    string // who has the key by then
		holders  string // whom the mirror asks
		searches int    // so far
	}{
		{"nobody has it", 0, "", "", 1},
		{"a negative answer repeats", 2400 * time.Millisecond, "a", "", 1},
		{"for 2.5 s, since repeating does not prolong it", 100 * time.Millisecond, "a", "a", 2},
		{"others that get it are not asked so soon", 2400 * time.Millisecond, "abcd", "a", 2},
		{"5 s after the first request everything begins again, with three", 100 * time.Millisecond, "abcd", "abc", 3},
		{"who are kept", 4900 * time.Millisecond, "d", "abc", 3},
		{"for 5 s, since asking does not renew them", 100 * time.Millisecond, "d", "d", 4},
		{"more are looked for 2.5 s later, beside those that are kept", 2500 * time.Millisecond, "efg", "def", 5},
	} {
		pass(step.after)
		there.names = strings.Split(step.names, "")
		got := strings.Join(m.visit("key", there.search).holders, "")
		if got != step.holders || there.searches != step.searches {
			t.Errorf("%s: %q after %d searches, want %q after %d", step.reason, got, there.searches, step.holders, step.searches)
		}
	}
	m.drop("key", "e")
	if got := m.visit("key", there.search).holders; !slices.Equal(got, []string{"d", "f"}) {
		t.Errorf("%q are asked, after one did not answer", got)
	}
	if m.visit("other", there.search); there.searches != 6 {
		t.Error("a lookup belongs to one key")
	}
}

func TestOdds(t *testing.T) {
	const rounds = 6000
	for holders, want := range map[int]float64{0: 0, 1: 0, 2: 22.0 / 40, 3: 30.0 / 40, 7: 30.0 / 40} {
		m, pass := clocked(7)
		there := nodes{names: make([]string, holders)}
		for i := range there.names {
			there.names[i] = fmt.Sprint("node", i)
		}
		stuck, gaveUp := 0, 0
		for i := range rounds {
			key := fmt.Sprint("key", i)
			if m.visit(key, there.search).stuck {
				t.Fatal("the first request is missed")
			}
			second := m.visit(key, there.search)
			if third := m.visit(key, there.search); third.stuck != second.stuck {
				t.Fatalf("the second request is missed: %v, the third: %v", second.stuck, third.stuck)
			}
			if second.stuck {
				stuck++
			}
			if second.gaveUp {
				gaveUp++
			}
			pass(time.Second)
		}
		if got := float64(stuck) / rounds; got < want-0.03 || got > want+0.03 {
			t.Errorf("with %d holders %.3f are stuck, want %.3f", holders, got, want)
		}
		if got := float64(gaveUp) / rounds; got < 0.01 || got > 0.03 {
			t.Errorf("%.3f searches are given up, want 0.02", got)
		}
	}
}

func TestTheSeedDecides(t *testing.T) {
	run := func(seed uint64) (luck []bool) {
		m, pass := clocked(seed)
		there := nodes{names: []string{"a", "b"}}
		for i := range 100 {
			luck = append(luck, m.visit(fmt.Sprint("key", i%9), there.search).stuck)
			pass(time.Second / 5)
		}
		return luck
	}
	if one, again, other := run(1), run(1), run(2); !slices.Equal(one, again) || slices.Equal(one, other) {
		t.Error("runs of one seed must be equal, and differ from those of another")
	}
	if Spegel(1, "10.0.0.1:5000").seed == Spegel(1, "10.0.0.2:5000").seed {
		t.Error("two nodes' mirrors must not miss the same requests")
	}
}
