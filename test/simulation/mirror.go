// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"time"

	"github.com/sluice-dev/sluice/test/peermirror"
)

// lookup is what a node's mirror remembers of a layer.
type lookup struct {
	used      bool          // ever
	made      time.Duration // when it began to keep the holders
	searched  time.Duration
	again     bool // it was asked for since made
	providers []*node
}

// mirror is whom a node gets a layer from; nil is a miss. It keeps holders as the stand-in of Spegel
// does, and asks the first that is still there, however busy. The odds of a miss were measured where
// the first request had been answered, and are taken for those after a miss too.
func (s *simulation) mirror(to *node, layer int) *pipe {
	l := &to.lookups[layer]
	now := s.clock.now
	if !l.used || s.fresh || now-l.made >= peermirror.LookupLifetime {
		*l = lookup{used: true, made: now, searched: now - peermirror.SearchInterval}
	}
	if len(l.providers) < peermirror.MaxProviders && now-l.searched >= peermirror.SearchInterval {
		l.searched = now
		l.providers = s.someHolders(layer, l.providers)
	}
	missed := l.again && s.random.Float64() < peermirror.StuckOdds(len(l.providers))
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
	if len(known) <= peermirror.MaxProviders {
		known = slices.Clone(known)
		s.random.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
		for _, n := range known {
			if len(providers) < peermirror.MaxProviders && !slices.Contains(providers, n) {
				providers = append(providers, n)
			}
		}
		return providers
	}
	for len(providers) < peermirror.MaxProviders {
		if n := known[s.random.IntN(len(known))]; !slices.Contains(providers, n) {
			providers = append(providers, n)
		}
	}
	return providers
}
