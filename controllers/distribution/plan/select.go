// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// scope is the nodes of one prefetch, or of several that select alike.
type scope struct {
	// desired nodes shall hold the images.
	desired []*node
	// kept nodes belong to the prefetch but take no Pods at the moment (not Ready,
	// cordoned, under pressure). They are not waited for and get nothing new, and
	// keep what they have: a node that comes back a minute later has lost no pin.
	kept []*node
	// full nodes are desired, and have no room for the images beside those of older
	// prefetches.
	full []*node

	names, silent, noRoom []string // of the desired nodes, full ones included
}

// selectNodes finds the nodes of each prefetch; those that select alike share a scope.
func (d *draft) selectNodes() {
	scopes := make(map[string]*scope)
	for _, p := range d.prefetches {
		p.mark = mark(p.UID, p.Resolution)
		key := selection(p.Prefetch)
		matching, ok := scopes[key]
		if !ok {
			matching = d.match(p.Prefetch)
			matching.list()
			scopes[key] = matching
		}
		p.scope = matching
	}
	if d.crowded() {
		d.makeRoom()
		return
	}
	for _, p := range d.prefetches {
		p.choose(func(*node) bool { return true })
	}
}

func (d *draft) match(p *Prefetch) *scope {
	s := &scope{desired: make([]*node, 0, len(d.nodes))}
	for _, n := range d.nodes {
		switch reachOf(n.Node, p) {
		case reachDesired:
			s.desired = append(s.desired, n)
		case reachKept:
			s.kept = append(s.kept, n)
		case reachNone:
		}
	}
	return s
}

// list names the desired nodes.
func (s *scope) list() {
	s.names = make([]string, 0, len(s.desired)+len(s.full))
	for _, n := range slices.Concat(s.desired, s.full) {
		s.names = append(s.names, n.Name)
		if n.silent {
			s.silent = append(s.silent, n.Name)
		}
	}
	for _, n := range s.full {
		s.noRoom = append(s.noRoom, n.Name)
	}
	slices.Sort(s.names)
	slices.Sort(s.silent)
	slices.Sort(s.noRoom)
}

type reach int

const (
	reachNone reach = iota
	reachKept
	reachDesired
)

// reachOf says whether a prefetch wants its images on a node.
func reachOf(n *Node, p *Prefetch) reach {
	if !strings.HasPrefix(n.Platform, "linux/") {
		return reachNone
	}
	for key, value := range p.NodeSelector {
		if got, ok := n.Labels[key]; !ok || got != value {
			return reachNone
		}
	}
	reach := reachDesired
	if !n.Ready {
		reach = reachKept
	}
	// The scheduler, too, treats a cordon as this taint.
	if n.Unschedulable && !tolerated(p.Tolerations, corev1.TaintNodeUnschedulable, "", corev1.TaintEffectNoSchedule) {
		reach = reachKept
	}
	for _, taint := range n.Taints {
		switch {
		case taint.Effect == corev1.TaintEffectPreferNoSchedule,
			tolerated(p.Tolerations, taint.Key, taint.Value, taint.Effect):
		case passing(taint.Key):
			reach = reachKept
		default:
			return reachNone
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

// passing names the taints that Kubernetes itself puts on a node for a while and
// takes off again. Any other says whom the node is for.
func passing(key string) bool {
	switch key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable,
		corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeOutOfService:
		return true
	}
	return false
}

// selection is equal for prefetches that select the same nodes.
func selection(p *Prefetch) string {
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
