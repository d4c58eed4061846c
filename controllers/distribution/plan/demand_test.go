// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A cordoned node is desired by who tolerates that, and retained by who does not.
func TestANodeIsDesiredIfOneOfItsPrefetchesDesiresIt(t *testing.T) {
	tolerates := func(p *Prefetch) {
		p.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists}}
	}
	for _, tt := range []struct {
		reason         string
		elder, younger func(*Prefetch)
		served         bool
	}{
		{"by the elder", tolerates, func(*Prefetch) {}, true},
		{"by the younger", func(*Prefetch) {}, tolerates, true},
		{"by neither", func(*Prefetch) {}, func(*Prefetch) {}, false},
	} {
		cluster := newFakeCluster()
		cluster.addNodes(2)
		cluster.machines["n001"].node.Unschedulable = true
		tt.elder(cluster.addPrefetch("elder", "reg/a:1"))
		tt.younger(cluster.addPrefetch("younger", "reg/a:1"))
		cluster.settle(t)
		if _, served := cluster.machines["n001"].spec["reg/a:1"]; served != tt.served {
			t.Errorf("desired %s: asked for the image %t, want %t", tt.reason, served, tt.served)
		}
	}
}
