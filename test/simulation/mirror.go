// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"time"
)

// lookup is what a node's mirror remembers of a layer.
type lookup struct {
	used      bool          // ever
	made      time.Duration // when it began to keep the holders
	searched  time.Duration
	again     bool // it was asked for since made
	providers []*node
}

// mirror is whom a node gets a layer from; nil is a miss. It asks at most three holders, the
// first that is still there, however busy.
func (s *simulation) mirror(to *node, layer int) *pipe {
	l := &to.lookups[layer]
	now := s.clock.now
	if !l.used || s.fresh || now-l.made >= lookupLifetime {
		*l = lookup{used: true, made: now, searched: now - searchInterval}
	}
	if len(l.providers) < maxProviders && now-l.searched >= searchInterval {
		l.searched = now
		l.providers = s.someHolders(layer, l.providers)
	}
	missed := l.again && s.random.Float64() < missOdds(len(l.providers))
	l.again = true
	l.providers = slices.DeleteFunc(l.providers, func(n *node) bool { return n.gone })
	if missed || s.random.Float64() < s.falseMiss || len(l.providers) == 0 {
		return nil
	}
	return l.providers[0].upload
}

// someHolders adds holders of a layer, drawn at random, until they are as many as Spegel keeps.
func (s *simulation) someHolders(layer int, providers []*node) []*node {
	known := s.holders[layer]
	if len(known) <= maxProviders {
		known = slices.Clone(known)
		s.random.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
		for _, n := range known {
			if len(providers) < maxProviders && !slices.Contains(providers, n) {
				providers = append(providers, n)
			}
		}
		return providers
	}
	for len(providers) < maxProviders {
		if n := known[s.random.IntN(len(known))]; !slices.Contains(providers, n) {
			providers = append(providers, n)
		}
	}
	return providers
}
