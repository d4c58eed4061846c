// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/internal/scheduling"
)

// selectNodes finds the nodes of each prefetch. Prefetches that select alike share them.
func (pl *planner) selectNodes() {
	bySelector := make(map[string]*targetNodes)
	for _, pf := range pl.prefetches {
		selector := selectorKey(pf.Prefetch)
		matching, ok := bySelector[selector]
		if !ok {
			matching = pl.matchNodes(pf.Prefetch)
			matching.setNames()
			bySelector[selector] = matching
		}
		pf.targets = matching
	}
	if pl.mayExceedCapacity() {
		pl.enforceCapacity()
		return
	}
	for _, pf := range pl.prefetches {
		pf.chooseNodes(func(*node) bool { return true })
	}
}

func (pl *planner) matchNodes(pf *Prefetch) *targetNodes {
	constraints := scheduling.New(pf.NodeSelector, pf.NodeAffinity, pf.Tolerations)
	t := &targetNodes{desired: make([]*node, 0, len(pl.nodes))}
	for _, n := range pl.nodes {
		fit := constraints.Fit(n.SchedulingNode())
		switch {
		case fit == scheduling.FitNever:
		case n.Uncovered || n.Unsupported:
			t.uncovered = append(t.uncovered, n)
			t.retained = append(t.retained, n)
		case fit == scheduling.FitLater:
			t.retained = append(t.retained, n)
		default:
			t.desired = append(t.desired, n)
		}
	}
	return t
}

// SchedulingNode is what the scheduler goes by.
func (n *Node) SchedulingNode() *scheduling.Node {
	os, _, _ := strings.Cut(n.Platform, "/")
	return &scheduling.Node{Name: n.Name, Labels: n.Labels, Taints: n.Taints, OS: os, Ready: n.Ready, Unschedulable: n.Unschedulable}
}

// selectorKey is equal for prefetches that select the same nodes.
func selectorKey(pf *Prefetch) string {
	var parts []string
	for label, value := range pf.NodeSelector {
		parts = append(parts, fmt.Sprintf("%q=%q", label, value))
	}
	for _, t := range pf.Tolerations {
		parts = append(parts, fmt.Sprintf("%q %q %q %q", t.Key, t.Operator, t.Value, t.Effect))
	}
	slices.Sort(parts)
	return strings.Join(append(parts, pf.NodeAffinity.String()), ",")
}
