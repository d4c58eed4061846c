// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// peer is a Pod that opens a connection.
type peer struct {
	ours            bool // in the namespace of Sluice
	namespace, pods labels.Set
}

// The rules are read as Kubernetes defines them: a Pod that no policy selects lets in
// everybody, one that is selected lets in what any rule of any policy lets in.
func TestNetworkPoliciesLetInWhatIsServed(t *testing.T) {
	var (
		stranger   = peer{namespace: labels.Set{"name": "other"}, pods: labels.Set{"app": "x"}}
		monitoring = peer{namespace: labels.Set{"name": "monitoring"}, pods: labels.Set{"app": "prometheus"}}
		agent      = peer{ours: true}
		impostor   = peer{namespace: labels.Set{"name": "other"}}
	)
	const on = "networkPolicy: {enabled: true}"
	const metricsFrom = "networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {matchLabels: {name: monitoring}}}]}"
	const hostNetwork = "{networkPolicy: {enabled: true}, agent: {hostNetwork: true}}"
	for _, c := range []struct {
		reason, values string
		to, port       string
		from           *peer
		want           bool
	}{
		{"without the value nothing is closed", "", controllerPod, "credentials", &stranger, true},
		{"nobody knows the API server's address", on, controllerPod, "webhooks", &stranger, true},
		{"credentials are for agents", on, controllerPod, "credentials", &agent, true},
		{"and for nobody else", on, controllerPod, "credentials", &stranger, false},
		{"labels alone make no agent: another namespace may have the same", on, controllerPod, "credentials", &impostor, false},
		{"an agent in its node's network has no Pod's address", hostNetwork, controllerPod, "credentials", &stranger, true},
		{"metrics are anybody's", on, controllerPod, "metrics", &stranger, true},
		{"metrics are anybody's", on, agentPod, "metrics", &stranger, true},
		{"metrics are for those who are named", metricsFrom, controllerPod, "metrics", &monitoring, true},
		{"metrics are for those who are named", metricsFrom, agentPod, "metrics", &monitoring, true},
		{"and for nobody else", metricsFrom, controllerPod, "metrics", &stranger, false},
		{"and for nobody else", metricsFrom, agentPod, "metrics", &stranger, false},
		{"probes are the kubelet's, whom no policy stops", on, controllerPod, "probes", &stranger, false},
		{"probes are the kubelet's, whom no policy stops", on, agentPod, "probes", &stranger, false},
	} {
		t.Run(c.reason, func(t *testing.T) {
			m := render(t, c.values)
			pods := m.pods(t)
			from := *c.from
			if from.pods == nil {
				from.pods = pods[agentPod].Labels
			}
			if got := letsIn(t, m, pods[c.to], c.port, from); got != c.want {
				t.Errorf("%s, port %s, lets in %+v: %t, want %t", c.to, c.port, from, got, c.want)
			}
		})
	}
}

// letsIn reports whether a Pod's port can be reached.
func letsIn(t *testing.T, m manifest, pod corev1.PodTemplateSpec, port string, from peer) bool {
	t.Helper()
	if !serves(pod, port) {
		t.Fatalf("the Pod has no port %q", port)
	}
	selected := false
	for _, object := range m {
		if object.GetKind() != "NetworkPolicy" || object.GetNamespace() != namespace {
			continue
		}
		policy := as[networkingv1.NetworkPolicy](t, m, "NetworkPolicy", object.GetName())
		if !matches(t, &policy.Spec.PodSelector, labels.Set(pod.Labels)) {
			continue
		}
		selected = true
		for _, rule := range policy.Spec.Ingress {
			if opens(t, pod, rule, port) && admits(t, rule, from) {
				return true
			}
		}
	}
	return !selected
}

// opens reports whether a rule is about a port. A name that the Pod does not have is a
// port that nobody reaches.
func opens(t *testing.T, pod corev1.PodTemplateSpec, rule networkingv1.NetworkPolicyIngressRule, port string) bool {
	t.Helper()
	for _, p := range rule.Ports {
		if p.Port == nil || p.Port.Type != intstr.String || !serves(pod, p.Port.StrVal) {
			t.Errorf("%+v is no port of the Pod", p)
		} else if p.Port.StrVal == port {
			return true
		}
	}
	return len(rule.Ports) == 0
}

func admits(t *testing.T, rule networkingv1.NetworkPolicyIngressRule, from peer) bool {
	t.Helper()
	for _, p := range rule.From {
		here := p.NamespaceSelector == nil && from.ours || p.NamespaceSelector != nil && matches(t, p.NamespaceSelector, from.namespace)
		if here && (p.PodSelector == nil || matches(t, p.PodSelector, from.pods)) {
			return true
		}
	}
	return len(rule.From) == 0
}

func matches(t *testing.T, selector *metav1.LabelSelector, set labels.Set) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(set)
}

func serves(pod corev1.PodTemplateSpec, port string) bool {
	for _, container := range pod.Spec.Containers {
		for _, p := range container.Ports {
			if p.Name == port {
				return true
			}
		}
	}
	return false
}
