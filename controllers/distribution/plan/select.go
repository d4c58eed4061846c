// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// selectNodes finds the nodes of each prefetch. Prefetches that select alike share them.
func (pl *planner) selectNodes() {
	bySelector := make(map[string]*targetNodes)
	for _, pf := range pl.prefetches {
		key := selectorKey(pf.Prefetch)
		matching, ok := bySelector[key]
		if !ok {
			matching = pl.matchNodes(pf.Prefetch)
			matching.setNames()
			bySelector[key] = matching
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
	t := &targetNodes{desired: make([]*node, 0, len(pl.nodes))}
	for _, n := range pl.nodes {
		switch eligibilityOf(n.Node, pf) {
		case eligibilityDesired:
			t.desired = append(t.desired, n)
		case eligibilityRetained:
			t.retained = append(t.retained, n)
		case eligibilityNone:
		}
	}
	return t
}

// eligibilityOf is what a node is for a prefetch, by its platform, labels, taints and conditions.
func eligibilityOf(n *Node, pf *Prefetch) eligibility {
	if !strings.HasPrefix(n.Platform, "linux/") {
		return eligibilityNone
	}
	for key, value := range pf.NodeSelector {
		if got, ok := n.Labels[key]; !ok || got != value {
			return eligibilityNone
		}
	}
	found := eligibilityDesired
	if !n.Ready {
		found = eligibilityRetained
	}
	// The scheduler, too, treats a cordon as this taint.
	if n.Unschedulable && !tolerated(pf.Tolerations, corev1.TaintNodeUnschedulable, "", corev1.TaintEffectNoSchedule) {
		found = eligibilityRetained
	}
	for _, taint := range n.Taints {
		switch {
		case taint.Effect == corev1.TaintEffectPreferNoSchedule,
			tolerated(pf.Tolerations, taint.Key, taint.Value, taint.Effect):
		case isTransientTaint(taint.Key):
			found = eligibilityRetained
		default:
			return eligibilityNone
		}
	}
	return found
}

// tolerated follows corev1.Toleration.ToleratesTaint, without the alpha comparison operators, which
// match nothing here.
func tolerated(tolerations []corev1.Toleration, key, value string, effect corev1.TaintEffect) bool {
	return slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool {
		if t.Effect != "" && t.Effect != effect || t.Key != "" && t.Key != key {
			return false
		}
		switch t.Operator {
		case corev1.TolerationOpExists:
			return true
		case "", corev1.TolerationOpEqual:
			return t.Value == value
		default:
			return false
		}
	})
}

// isTransientTaint reports whether Kubernetes itself puts a taint with that key on a node for a
// while and takes it off again. Any other taint says whom the node is for.
func isTransientTaint(key string) bool {
	switch key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable,
		corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeOutOfService:
		return true
	}
	return false
}

// selectorKey is equal for prefetches that select the same nodes.
func selectorKey(pf *Prefetch) string {
	var parts []string
	for key, value := range pf.NodeSelector {
		parts = append(parts, fmt.Sprintf("%q=%q", key, value))
	}
	for _, t := range pf.Tolerations {
		parts = append(parts, fmt.Sprintf("%q %q %q %q", t.Key, t.Operator, t.Value, t.Effect))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}
