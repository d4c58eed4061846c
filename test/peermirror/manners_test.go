// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"fmt"
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

func TestGoodMannersRefuseNothing(t *testing.T) {
	var m *Manners
	for range 10 {
		if v := m.enter("key"); v != (visit{}) || v.refuses(5) {
			t.Errorf("visit = %+v", v)
		}
	}
	m.leave("key", true)
}

func TestNegativeAnswersRepeat(t *testing.T) {
	m, pass := clocked(1)
	m.enter("key")
	m.leave("key", true)
	pass(2 * time.Second)
	if m.enter("key").refusal == "" {
		t.Error("2 s after a miss the key was searched for again")
	}
	if m.enter("other").refusal != "" {
		t.Error("a miss belongs to one key")
	}
	pass(600 * time.Millisecond)
	if refusal := m.enter("key").refusal; refusal != "" {
		t.Errorf("2.6 s after the miss: %s; repeating must not prolong it", refusal)
	}
}

func TestConcurrentRequestsAreRefused(t *testing.T) {
	m, pass := clocked(1)
	m.enter("key")
	for range 3 {
		if m.enter("key").refusal == "" {
			t.Error("a second request was let in while the first was running")
		}
	}
	m.leave("key", false)
	pass(6 * time.Second)
	if v := m.enter("key"); v.refusal != "" || v.impatient {
		t.Errorf("after a pause: %+v", v)
	}
}

func TestImpatience(t *testing.T) {
	m, pass := clocked(1)
	ask := func() visit {
		v := m.enter("key")
		m.leave("key", false)
		return v
	}
	if ask().impatient {
		t.Error("the first request is not a second one")
	}
	pass(4900 * time.Millisecond)
	if !ask().impatient {
		t.Error("4.9 s after another a request is impatient")
	}
	pass(4900 * time.Millisecond)
	if !ask().impatient {
		t.Error("asking renews the 5 s")
	}
	pass(5 * time.Second)
	if ask().impatient {
		t.Error("5 s later it is not")
	}
}

func TestOdds(t *testing.T) {
	const rounds = 6000
	for holders, want := range map[int]float64{0: 0, 1: 0, 2: 3.0 / 5, 3: 5.0 / 6, 7: 5.0 / 6} {
		m, pass := clocked(7)
		refused, gaveUp := 0, 0
		for i := range rounds {
			m.enter(fmt.Sprint("key", i))
			m.leave(fmt.Sprint("key", i), false)
			v := m.enter(fmt.Sprint("key", i))
			if v.refuses(holders) {
				refused++
			}
			if v.gaveUp {
				gaveUp++
			}
			pass(time.Second)
		}
		if got := float64(refused) / rounds; got < want-0.03 || got > want+0.03 {
			t.Errorf("with %d holders %.3f are refused, want %.3f", holders, got, want)
		}
		if got := float64(gaveUp) / rounds; got < 0.01 || got > 0.03 {
			t.Errorf("%.3f searches are given up, want 0.02", got)
		}
	}
}

func TestTheSeedDecides(t *testing.T) {
	run := func(seed uint64) (luck []float64) {
		m, pass := clocked(seed)
		for i := range 20 {
			luck = append(luck, m.enter(fmt.Sprint("key", i%3)).luck)
			m.leave(fmt.Sprint("key", i%3), false)
			pass(10 * time.Second)
		}
		return luck
	}
	one, again, other := fmt.Sprint(run(1)), fmt.Sprint(run(1)), fmt.Sprint(run(2))
	if one != again || one == other {
		t.Error("runs of one seed must be equal, and differ from those of another")
	}
	if Spegel(1, "10.0.0.1:5000").seed == Spegel(1, "10.0.0.2:5000").seed {
		t.Error("two nodes' mirrors must not miss the same requests")
	}
}
