// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// targetNodes is the nodes of one prefetch, or of several that select alike.
type targetNodes struct {
	// desired nodes shall hold the images.
	desired []*node
	// retained nodes belong to the prefetch but take no Pods at the moment (not Ready,
	// cordoned, under pressure). They are not waited for and get nothing new, and
	// keep what they have: a node that comes back a minute later has lost no pin.
	retained []*node
	// full nodes are desired, and have no room for the images beside those of older
	// prefetches.
	full []*node

	names, silentNames, fullNames []string // of the desired nodes, full ones included
}

// selectNodes finds the nodes of each prefetch; those that select alike share a scope.
func (d *planner) selectNodes() {
	scopes := make(map[string]*targetNodes)
	for _, p := range d.prefetches {
		p.requestID = newRequestID(p.UID, p.Resolution)
		key := selectorKey(p.Prefetch)
		matching, ok := scopes[key]
		if !ok {
			matching = d.matchNodes(p.Prefetch)
			matching.nameNodes()
			scopes[key] = matching
		}
		p.targets = matching
	}
	if d.mayExceedCapacity() {
		d.enforceCapacity()
		return
	}
	for _, p := range d.prefetches {
		p.chooseNodes(func(*node) bool { return true })
	}
}

func (d *planner) matchNodes(p *Prefetch) *targetNodes {
	s := &targetNodes{desired: make([]*node, 0, len(d.nodes))}
	for _, n := range d.nodes {
		switch eligibilityOf(n.Node, p) {
		case eligibilityDesired:
			s.desired = append(s.desired, n)
		case eligibilityRetained:
			s.retained = append(s.retained, n)
		case eligibilityNone:
		}
	}
	return s
}

// nameNodes names the desired nodes.
func (s *targetNodes) nameNodes() {
	s.names = make([]string, 0, len(s.desired)+len(s.full))
	for _, n := range slices.Concat(s.desired, s.full) {
		s.names = append(s.names, n.Name)
		if n.silent {
			s.silentNames = append(s.silentNames, n.Name)
		}
	}
	for _, n := range s.full {
		s.fullNames = append(s.fullNames, n.Name)
	}
	slices.Sort(s.names)
	slices.Sort(s.silentNames)
	slices.Sort(s.fullNames)
}

type eligibility int

const (
	eligibilityNone eligibility = iota
	eligibilityRetained
	eligibilityDesired
)

// eligibilityOf says whether a prefetch wants its images on a node.
func eligibilityOf(n *Node, p *Prefetch) eligibility {
	if !strings.HasPrefix(n.Platform, "linux/") {
		return eligibilityNone
	}
	for key, value := range p.NodeSelector {
		if got, ok := n.Labels[key]; !ok || got != value {
			return eligibilityNone
		}
	}
	reach := eligibilityDesired
	if !n.Ready {
		reach = eligibilityRetained
	}
	// The scheduler, too, treats a cordon as this taint.
	if n.Unschedulable && !tolerated(p.Tolerations, corev1.TaintNodeUnschedulable, "", corev1.TaintEffectNoSchedule) {
		reach = eligibilityRetained
	}
	for _, taint := range n.Taints {
		switch {
		case taint.Effect == corev1.TaintEffectPreferNoSchedule,
			tolerated(p.Tolerations, taint.Key, taint.Value, taint.Effect):
		case isTransientTaint(taint.Key):
			reach = eligibilityRetained
		default:
			return eligibilityNone
		}
	}
	return reach
}

// tolerated follows corev1.Toleration.ToleratesTaint, without the alpha comparison
// operators, which match nothing here.
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

// isTransientTaint names the taints that Kubernetes itself puts on a node for a while and
// takes off again. Any other says whom the node is for.
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
func selectorKey(p *Prefetch) string {
	var parts []string
	for key, value := range p.NodeSelector {
		parts = append(parts, fmt.Sprintf("%q=%q", key, value))
	}
	for _, t := range p.Tolerations {
		parts = append(parts, fmt.Sprintf("%q %q %q %q", t.Key, t.Operator, t.Value, t.Effect))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}
