// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduling

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// in is the required affinity to nodes whose label has one of the values.
func in(key string, values ...string) *corev1.NodeAffinity {
	return &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values},
		}}},
	}}
}

func TestFit(t *testing.T) {
	noSchedule := func(key string) []corev1.Taint {
		return []corev1.Taint{{Key: key, Value: "x", Effect: corev1.TaintEffectNoSchedule}}
	}
	exists := func(key string) []corev1.Toleration {
		return []corev1.Toleration{{Key: key, Operator: corev1.TolerationOpExists}}
	}
	usable := func(change func(*Node)) Node {
		node := Node{Name: "a", OS: "linux", Ready: true, Labels: map[string]string{"pool": "web"}}
		change(&node)
		return node
	}
	plain := usable(func(*Node) {})
	tests := []struct {
		name string
		pod  corev1.PodSpec
		node Node
		want Fit
	}{
		{"an ordinary Pod runs on an ordinary node", corev1.PodSpec{}, plain, FitNow},
		{"the node selector matches", corev1.PodSpec{NodeSelector: map[string]string{"pool": "web"}}, plain, FitNow},
		{"the node selector names another value", corev1.PodSpec{NodeSelector: map[string]string{"pool": "gpu"}}, plain, FitNever},
		{
			"the required affinity matches",
			corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: in("pool", "gpu", "web")}}, plain, FitNow,
		},
		{
			"the required affinity does not match",
			corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: in("pool", "gpu")}}, plain, FitNever,
		},
		{
			"a preference excludes no node",
			corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
					Weight: 1, Preference: in("pool", "gpu").RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0],
				}},
			}}}, plain, FitNow,
		},
		{
			"terms that cannot be read match nothing",
			corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: in("not a label!", "x")}}, plain, FitNever,
		},
		{"a Pod that names its node runs there", corev1.PodSpec{NodeName: "a"}, plain, FitNow},
		{"a Pod that names its node runs nowhere else", corev1.PodSpec{NodeName: "b"}, plain, FitNever},
		{"no Windows", corev1.PodSpec{}, usable(func(n *Node) { n.OS = "windows" }), FitNever},
		{"a node that is not Ready comes back", corev1.PodSpec{}, usable(func(n *Node) { n.Ready = false }), FitLater},
		{"a cordon passes", corev1.PodSpec{}, usable(func(n *Node) { n.Unschedulable = true }), FitLater},
		{
			"a cordon that is tolerated is none",
			corev1.PodSpec{Tolerations: exists(corev1.TaintNodeUnschedulable)},
			usable(func(n *Node) { n.Unschedulable = true }), FitNow,
		},
		{
			"a taint of Kubernetes' own passes",
			corev1.PodSpec{}, usable(func(n *Node) { n.Taints = noSchedule(corev1.TaintNodeDiskPressure) }), FitLater,
		},
		{
			"so does one of the cloud controller's on a machine that is switched off",
			corev1.PodSpec{}, usable(func(n *Node) { n.Taints = noSchedule("node.cloudprovider.kubernetes.io/shutdown") }), FitLater,
		},
		{
			"and on one that it has yet to know",
			corev1.PodSpec{}, usable(func(n *Node) { n.Taints = noSchedule("node.cloudprovider.kubernetes.io/uninitialized") }), FitLater,
		},
		{
			"and one of a network add-on that is being restarted",
			corev1.PodSpec{}, usable(func(n *Node) { n.Taints = noSchedule("node.cilium.io/agent-not-ready") }), FitLater,
		},
		{"any other taint lasts", corev1.PodSpec{}, usable(func(n *Node) { n.Taints = noSchedule("team") }), FitNever},
		{
			"a taint that lasts outweighs a node that is not Ready",
			corev1.PodSpec{}, usable(func(n *Node) { n.Ready, n.Taints = false, noSchedule("team") }), FitNever,
		},
		{
			"a tolerated taint is none",
			corev1.PodSpec{Tolerations: exists("team")}, usable(func(n *Node) { n.Taints = noSchedule("team") }), FitNow,
		},
		{
			"PreferNoSchedule keeps nobody away", corev1.PodSpec{},
			usable(func(n *Node) { n.Taints = []corev1.Taint{{Key: "team", Effect: corev1.TaintEffectPreferNoSchedule}} }), FitNow,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := OfPod(&tt.pod).Fit(&tt.node); got != tt.want {
				t.Errorf("Fit = %d, want %d", got, tt.want)
			}
		})
	}
}

// A DaemonSet's Pods are meant to run on a node also while it is in trouble.
func TestOfDaemon(t *testing.T) {
	troubled := Node{
		Name: "a", OS: "linux", Ready: true, Unschedulable: true,
		Taints: []corev1.Taint{
			{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
			{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute},
			{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule},
		},
	}
	if got := OfDaemon(&corev1.PodSpec{}).Fit(&troubled); got != FitNow {
		t.Errorf("Fit of a daemon = %d, want %d", got, FitNow)
	}
	kept := &corev1.PodSpec{NodeSelector: map[string]string{"pool": "web"}}
	if got := OfDaemon(kept).Fit(&troubled); got != FitNever {
		t.Errorf("Fit of a daemon that selects other nodes = %d, want %d", got, FitNever)
	}
}
