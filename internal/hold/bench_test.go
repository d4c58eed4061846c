// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// BenchmarkDecide decides about a new image in a cluster of 5,000 nodes that have 20 others each.
func BenchmarkDecide(b *testing.B) {
	others := make([]string, 20)
	for i := range others {
		others[i] = fmt.Sprintf("ghcr.io/org/other:v%d", i)
	}
	p := pulling(imageB)
	cluster := Cluster{Prefetches: []*v1alpha1.ImagePrefetch{p}}
	for i := range 5000 {
		cluster.Nodes = append(cluster.Nodes, node(fmt.Sprintf("node-%d", i), has(others...)))
	}
	write := Write{Old: deployment(), New: deployment(runs(imageB)), Prefetch: p, Cluster: cluster, Now: now}
	b.ReportAllocs()
	for b.Loop() {
		if Decide(write).Outcome != OutcomeHeld {
			b.Fatal("it is not held")
		}
	}
}
