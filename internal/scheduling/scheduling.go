// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scheduling decides on which nodes a Pod may run. It is pure, and leaves labels,
// affinity and taints to the library that the scheduler itself uses.
package scheduling

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Taints of the cloud controller, on a node that it has yet to know and on one that is switched off.
// Source: k8s.io/cloud-provider/api.
const (
	taintUninitialized = "node.cloudprovider.kubernetes.io/uninitialized"
	taintShutdown      = "node.cloudprovider.kubernetes.io/shutdown"
)

// Fit is how a node suits the constraints of a Pod.
type Fit int

const (
	// FitNever: the node's labels do not match, or it bears a lasting taint that is not
	// tolerated, or it does not run Linux.
	FitNever Fit = iota
	// FitLater: the node matches and takes no Pods at the moment: it is not Ready, is
	// cordoned, or bears a taint that passes.
	FitLater
	// FitNow: the scheduler may put the Pod there now.
	FitNow
)

// Node has what the scheduler looks at.
type Node struct {
	Name   string
	Labels map[string]string
	Taints []corev1.Taint
	// OS is as the kubelet reports it, such as "linux".
	OS string
	// Ready is the node's Ready condition; Unschedulable its spec field (cordoned).
	Ready, Unschedulable bool
}

// Constraints are what a Pod, or an ImagePrefetch, says of the nodes that it may run on.
type Constraints struct {
	nodeName    string
	required    nodeaffinity.RequiredNodeAffinity
	tolerations []corev1.Toleration
}

// New reads constraints from the fields of the same names of a Pod. Only the required
// terms of the affinity count.
func New(nodeSelector map[string]string, affinity *corev1.NodeAffinity, tolerations []corev1.Toleration) Constraints {
	return Constraints{
		required:    nodeaffinity.NewRequiredNodeAffinity(nodeSelector, &corev1.Affinity{NodeAffinity: affinity}),
		tolerations: tolerations,
	}
}

// OfPod reads the constraints of a Pod. Affinity to other Pods and topology spread are left
// out: they choose among the nodes that are left, and change from Pod to Pod.
func OfPod(pod *corev1.PodSpec) Constraints {
	var affinity *corev1.NodeAffinity
	if pod.Affinity != nil {
		affinity = pod.Affinity.NodeAffinity
	}
	constraints := New(pod.NodeSelector, affinity, pod.Tolerations)
	constraints.nodeName = pod.NodeName
	return constraints
}

// OfDaemon reads the constraints of a DaemonSet's Pod, with the tolerations that the
// DaemonSet controller adds to each.
// Source: pkg/controller/daemon/util.AddOrUpdateDaemonPodTolerations of Kubernetes.
func OfDaemon(pod *corev1.PodSpec) Constraints {
	constraints := OfPod(pod)
	added := []corev1.Toleration{
		{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	}
	if pod.HostNetwork {
		added = append(added, corev1.Toleration{
			Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule,
		})
	}
	constraints.tolerations = slices.Concat(constraints.tolerations, added)
	return constraints
}

// Fit reports how a node suits the constraints.
func (c Constraints) Fit(node *Node) Fit {
	if !strings.EqualFold(node.OS, string(corev1.Linux)) || c.nodeName != "" && c.nodeName != node.Name {
		return FitNever
	}
	named := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: node.Labels}}
	if matches, err := c.required.Match(&named); err != nil || !matches {
		return FitNever // terms that cannot be read match nothing, as for the scheduler
	}
	fit := FitNow
	if !node.Ready {
		fit = FitLater
	}
	cordon := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	if node.Unschedulable && !c.tolerates(&cordon) { // the scheduler treats a cordon as this taint
		fit = FitLater
	}
	for i := range node.Taints {
		taint := &node.Taints[i]
		switch {
		case taint.Effect == corev1.TaintEffectPreferNoSchedule, c.tolerates(taint):
		case passing(taint.Key):
			fit = FitLater
		default:
			return FitNever
		}
	}
	return fit
}

// tolerates leaves out the comparison operators, which are alpha and off by default.
func (c Constraints) tolerates(taint *corev1.Taint) bool {
	return corev1helpers.TolerationsTolerateTaint(klog.Logger{}, c.tolerations, taint, false)
}

// passing reports whether a taint is one that comes and goes with the state of its node: those that
// Kubernetes sets and takes off by itself, and those that end in "not-ready", as the network and
// storage add-ons name theirs. Any other taint lasts: it says whom the node is for.
func passing(key string) bool {
	switch key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable,
		corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeOutOfService,
		taintUninitialized, taintShutdown:
		return true
	}
	return strings.HasSuffix(key, "not-ready")
}
