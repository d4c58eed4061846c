// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Manners are how a mirror treats those that ask it for what only peers have.
// nil is well-behaved: every request is searched for, and found if a peer has
// it. What the node itself has, and what a peer asks for, is always answered.
//
// Spegel's, as its code has them (v0.7.4) and as they were measured once, by hand, on five
// nodes:
//   - It looks for at most three holders of a key and keeps them for 5 s, in
//     which it asks nobody else. With fewer it looks again after 2.5 s, so that a
//     negative answer repeats for 2.5 s, whatever peers get meanwhile.
//   - Where it finds several, it may answer the first request alone, and miss all
//     others of these 5 s, each after the whole time that it may search. So it was
//     with 22 of 40 keys that two nodes had, with 31 of 40 and three nodes, with
//     29 of 40 and four, and never with one node.
//   - One search in fifty is given up after 200 ms.
//
// So who asks for each key once, and again only 5 s after a miss, gets what
// there is, but for the last of these.
type Manners struct {
	seed uint64
	now  func() time.Time

	mu   sync.Mutex
	keys map[string]*lookup
}

const (
	// MaxProviders is how many holders Spegel looks for.
	MaxProviders = 3
	// LookupLifetime is how long it keeps them.
	LookupLifetime = 5 * time.Second
	// SearchInterval is the time after which it looks for more, if it has fewer.
	SearchInterval = LookupLifetime / 2

	falseMissOdds  = 1.0 / 50
	falseMissDelay = 200 * time.Millisecond
)

// StuckOdds is how likely only the first request of LookupLifetime is answered where so many holders
// are found, from 0 to 1: what was measured of Spegel 0.7.4.
func StuckOdds(holders int) float64 {
	switch {
	case holders >= 3:
		return (31.0 + 29) / 80
	case holders == 2:
		return 22.0 / 40
	default:
		return 0
	}
}

// Spegel returns the manners that were measured. Which requests are missed
// follows from the seed, the mirror's own name, the key and how often that was
// asked for, so that a run can be repeated.
func Spegel(seed uint64, name string) *Manners {
	return &Manners{seed: seed ^ hash(name), now: time.Now, keys: map[string]*lookup{}}
}

// lookup is what a mirror remembers of a key. A request has it locked while it
// searches, so that others for the key wait for what it finds.
type lookup struct {
	mu sync.Mutex

	asked    uint64    // how often, ever
	made     time.Time // since when the holders are kept
	searched time.Time
	holders  []string
	luck     float64 // whether it is stuck, once there was a request
	again    bool    // there was one since made
}

// visit is what becomes of one request for a key.
type visit struct {
	holders []string // whom to ask, in this order
	stuck   bool     // it is missed, whoever has the key
	gaveUp  bool     // so it is, and sooner
}

// visit looks a key up, by a search unless an earlier one still counts.
func (m *Manners) visit(key string, search func(most int) []string) visit {
	l := m.lookup(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	dice := rand.New(rand.NewPCG(m.seed^hash(key), l.asked))
	l.asked++
	now := m.now()
	if now.Sub(l.made) >= LookupLifetime {
		l.made, l.searched, l.holders, l.again = now, time.Time{}, nil, false
		l.luck = dice.Float64()
	}
	if len(l.holders) < MaxProviders && now.Sub(l.searched) >= SearchInterval {
		l.searched = now
		l.add(search(MaxProviders))
	}
	v := visit{
		holders: slices.Clone(l.holders),
		stuck:   l.again && l.luck < StuckOdds(len(l.holders)),
		gaveUp:  dice.Float64() < falseMissOdds,
	}
	l.again = true
	return v
}

// add takes in new holders, for as long as there is room.
func (l *lookup) add(found []string) {
	for _, holder := range found {
		if len(l.holders) < MaxProviders && !slices.Contains(l.holders, holder) {
			l.holders = append(l.holders, holder)
		}
	}
}

// drop takes out a holder that has not answered with the content.
func (m *Manners) drop(key, holder string) {
	l := m.lookup(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders = slices.DeleteFunc(l.holders, func(other string) bool { return other == holder })
}

func (m *Manners) lookup(key string) *lookup {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[key] == nil {
		m.keys[key] = &lookup{}
	}
	return m.keys[key]
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}
