// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

type eligibility string

const (
	eligibilityNone     eligibility = "none"
	eligibilityRetained eligibility = "retained"
	eligibilityDesired  eligibility = "desired"
)

// eligibilityOf is what a node is for a prefetch.
func eligibilityOf(n *Node, p *Prefetch) eligibility {
	switch targets := newPlanner(State{Nodes: []Node{*n}}, DefaultLimits()).matchNodes(p); {
	case len(targets.desired) > 0:
		return eligibilityDesired
	case len(targets.retained) > 0:
		return eligibilityRetained
	}
	return eligibilityNone
}

func TestEligibility(t *testing.T) {
	taint := func(key, value string, effect corev1.TaintEffect) func(*Node) {
		return func(n *Node) { n.Taints = append(n.Taints, corev1.Taint{Key: key, Value: value, Effect: effect}) }
	}
	tolerate := func(key string, operator corev1.TolerationOperator, value string, effect corev1.TaintEffect) func(*Prefetch) {
		return func(p *Prefetch) {
			p.Tolerations = append(p.Tolerations, corev1.Toleration{Key: key, Operator: operator, Value: value, Effect: effect})
		}
	}
	const noSchedule, noExecute, prefer = corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule
	const equal, exists = corev1.TolerationOpEqual, corev1.TolerationOpExists
	var none func(*Prefetch)
	for _, c := range []struct {
		reason   string
		node     func(*Node)
		prefetch func(*Prefetch)
		want     eligibility
	}{
		{"an ordinary node takes everything", func(*Node) {}, none, eligibilityDesired},
		{"Windows nodes cannot use Linux images", func(n *Node) { n.Platform = "windows/amd64" }, none, eligibilityNone},
		{"a node whose kubelet has not said what it is waits", func(n *Node) { n.Platform = "" }, none, eligibilityNone},
		{"the selector matches on every label", func(n *Node) { n.Labels = map[string]string{"disk": "ssd", "gpu": ""} },
			func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd", "gpu": ""} }, eligibilityDesired},
		{"another value does not match", func(n *Node) { n.Labels = map[string]string{"disk": "hdd"} },
			func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} }, eligibilityNone},
		{"a missing label is not an empty one", func(*Node) {},
			func(p *Prefetch) { p.NodeSelector = map[string]string{"gpu": ""} }, eligibilityNone},

		{"a node that is not Ready is not waited for, but keeps its pins", func(n *Node) { n.Ready = false }, none, eligibilityRetained},
		{"no toleration makes up for a node that is not Ready", func(n *Node) { n.Ready = false }, tolerate("", exists, "", ""), eligibilityRetained},
		{"a cordoned node takes no new Pods, but keeps its pins", func(n *Node) { n.Unschedulable = true }, none, eligibilityRetained},
		{"a prefetch that tolerates the taint of a cordon gets cordoned nodes, as with the scheduler", func(n *Node) { n.Unschedulable = true },
			tolerate(corev1.TaintNodeUnschedulable, exists, "", noSchedule), eligibilityDesired},
		{"disk pressure is transient", taint(corev1.TaintNodeDiskPressure, "", noSchedule), none, eligibilityRetained},
		{"unreachable is transient", taint(corev1.TaintNodeUnreachable, "", noExecute), none, eligibilityRetained},
		{"a node that does not match is not retained for being cordoned", func(n *Node) { n.Unschedulable, n.Labels = true, nil },
			func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} }, eligibilityNone},

		{"NoSchedule keeps away", taint("team", "x", noSchedule), none, eligibilityNone},
		{"NoExecute keeps away", taint("team", "x", noExecute), none, eligibilityNone},
		{"PreferNoSchedule does not", taint("team", "x", prefer), none, eligibilityDesired},
		{"Equal tolerates the value", taint("team", "x", noSchedule), tolerate("team", equal, "x", noSchedule), eligibilityDesired},
		{"no operator means Equal", taint("team", "x", noSchedule), tolerate("team", "", "x", noSchedule), eligibilityDesired},
		{"Equal does not tolerate another value", taint("team", "x", noSchedule), tolerate("team", equal, "y", noSchedule), eligibilityNone},
		{"Exists tolerates any value", taint("team", "x", noSchedule), tolerate("team", exists, "", noSchedule), eligibilityDesired},
		{"another key does not help", taint("team", "x", noSchedule), tolerate("crew", exists, "", noSchedule), eligibilityNone},
		{"no key with Exists tolerates everything", taint("team", "x", noSchedule), tolerate("", exists, "", noSchedule), eligibilityDesired},
		{"no effect means every effect", taint("team", "x", noExecute), tolerate("team", equal, "x", ""), eligibilityDesired},
		{"NoSchedule tolerated is not NoExecute tolerated", taint("team", "x", noExecute), tolerate("team", equal, "x", noSchedule), eligibilityNone},
		{"an operator from the future tolerates nothing", taint("cores", "8", noSchedule), tolerate("cores", "Gt", "4", noSchedule), eligibilityNone},
		{"every taint must be tolerated", func(n *Node) { taint("a", "", noSchedule)(n); taint("b", "", noSchedule)(n) },
			tolerate("a", exists, "", ""), eligibilityNone},
		{"a transient taint does not excuse a lasting one", func(n *Node) {
			taint(corev1.TaintNodeMemoryPressure, "", noSchedule)(n)
			taint("team", "x", noSchedule)(n)
		}, none, eligibilityNone},
	} {
		t.Run(c.reason, func(t *testing.T) {
			node := Node{Name: "n", Platform: "linux/amd64", Ready: true}
			c.node(&node)
			var prefetch Prefetch
			if c.prefetch != nil {
				c.prefetch(&prefetch)
			}
			if got := eligibilityOf(&node, &prefetch); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestPrefetchesThatSelectAlikeShareTheirNodes(t *testing.T) {
	toleration := corev1.Toleration{Key: "a", Operator: corev1.TolerationOpExists}
	base := Prefetch{NodeSelector: map[string]string{"a": "b", "c": "d"}, Tolerations: []corev1.Toleration{toleration}}
	reordered := Prefetch{NodeSelector: map[string]string{"c": "d", "a": "b"}, Tolerations: []corev1.Toleration{toleration}}
	if got := selectorKey(&reordered); got != selectorKey(&base) {
		t.Errorf("the same selection reads %s and %s", got, selectorKey(&base))
	}
	for _, other := range []Prefetch{
		{},
		{NodeSelector: base.NodeSelector},
		{NodeSelector: base.NodeSelector, Tolerations: base.Tolerations, NodeAffinity: &corev1.NodeAffinity{}},
		{NodeSelector: map[string]string{"a": `b","c"="d`}, Tolerations: base.Tolerations},
		{NodeSelector: base.NodeSelector, Tolerations: []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpEqual}}},
	} {
		if selectorKey(&other) == selectorKey(&base) {
			t.Errorf("%+v is taken for %+v", other, base)
		}
	}
}
