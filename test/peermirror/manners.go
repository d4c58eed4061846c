// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"
)

// Manners are how a mirror treats requests for what only peers have.
// nil is well-behaved: every request is searched for, and found if a peer has
// it. What the node itself has, and what a peer asks for, is always answered.
//
// Spegel's, as they were measured:
//   - A negative answer repeats for 2.5 s, whatever peers get meanwhile.
//   - While a request for a key runs, others for the same key are refused.
//   - A request within 5 s of another for the same key is refused 3 times in 5
//     with two holders, and 5 times in 6 with more. Asking renews the 5 s.
//   - One search in fifty is given up after 200 ms.
//
// So a client that asks for each key once, and again only 5 s after a miss, gets what
// there is, but for the last of these.
type Manners struct {
	seed uint64
	now  func() time.Time

	mu   sync.Mutex
	keys map[string]*history
}

const (
	negativeCache  = 2500 * time.Millisecond
	impatience     = 5 * time.Second
	falseMissOdds  = 1.0 / 50
	falseMissDelay = 200 * time.Millisecond
)

// refusalOdds is how likely a request within the time of impatience is refused.
func refusalOdds(holders int) float64 {
	switch {
	case holders >= 3:
		return 5.0 / 6
	case holders == 2:
		return 3.0 / 5
	default:
		return 0
	}
}

// Spegel returns the manners that were measured. Which requests are refused
// follows from the seed, the mirror's own name, the key and how often that was
// asked for, so that a run can be repeated.
func Spegel(seed uint64, name string) *Manners {
	return &Manners{seed: seed ^ hash(name), now: time.Now, keys: map[string]*history{}}
}

// history is what a mirror remembers of a key.
type history struct {
	times     uint64 // asked for
	last      time.Time
	missUntil time.Time
	running   bool
}

// visit is one request for a key.
type visit struct {
	refusal   string // why it is refused before any search; empty if it is not
	gaveUp    bool   // the search finds nothing, whoever has it
	impatient bool   // it comes too soon after another
	luck      float64
}

// refuses reports whether the visit is refused with so many holders.
func (v visit) refuses(holders int) bool { return v.impatient && v.luck < refusalOdds(holders) }

// enter registers a request. Unless that refuses it, leave must follow.
func (m *Manners) enter(key string) visit {
	if m == nil {
		return visit{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h, known := m.keys[key]
	if !known {
		h = &history{}
		m.keys[key] = h
	}
	now := m.now()
	dice := rand.New(rand.NewPCG(m.seed^hash(key), h.times))
	v := visit{
		impatient: now.Sub(h.last) < impatience,
		gaveUp:    dice.Float64() < falseMissOdds,
		luck:      dice.Float64(),
	}
	h.times++
	h.last = now
	switch {
	case now.Before(h.missUntil):
		v.refusal = "known to be missing"
	case h.running:
		v.refusal = "already being asked for"
		h.missUntil = now.Add(negativeCache)
	default:
		h.running = true
	}
	return v
}

// leave ends a request that was let in.
func (m *Manners) leave(key string, missed bool) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.keys[key]
	h.running = false
	if missed {
		h.missUntil = m.now().Add(negativeCache)
	}
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}
