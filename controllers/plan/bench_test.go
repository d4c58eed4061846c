// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// BenchmarkNext asks for one plan in the middle of a distribution and at its end. The
// time per node and image must not grow with either.
func BenchmarkNext(b *testing.B) {
	for _, size := range []struct{ nodes, images, prefetches int }{
		{500, 10, 1}, {5_000, 10, 1}, {50_000, 10, 1}, {5_000, 100, 1}, {5_000, 10, 1_000},
	} {
		for _, stage := range []struct {
			name string
			held float64
		}{{"begin", 0}, {"middle", 0.5}, {"end", 1}} {
			b.Run(fmt.Sprintf("nodes=%d/images=%d/prefetches=%d/%s", size.nodes, size.images, size.prefetches, stage.name), func(b *testing.B) {
				state := distributing(size.nodes, size.images, size.prefetches, stage.held)
				limits := DefaultLimits()
				b.ReportAllocs()
				for b.Loop() {
					Next(state, limits)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size.nodes*size.images), "ns/node/image")
			})
		}
	}
}

// crowding is a cluster of 200 nodes where each prefetch wants images of its own on a
// quarter of the nodes, and all together are more than a NodeImageSet holds.
func crowding(prefetches int) State {
	s := distributing(200, 0, prefetches, 0)
	for i := range s.Prefetches {
		s.Prefetches[i].Replicas = new(int32(50))
		for j := range 10 {
			s.Prefetches[i].Images = append(s.Prefetches[i].Images, fmt.Sprintf("registry.example.com/team%d/app%d@sha256:%d", i, j, j))
		}
	}
	return s
}

// distributing is a cluster in which the first nodes hold every image.
func distributing(nodes, images, prefetches int, held float64) State {
	s := State{Now: time.Unix(1_700_000_000, 0)}
	var names []string
	for i := range images {
		names = append(names, fmt.Sprintf("registry.example.com/team/app%d:v1", i))
	}
	resolved := make(map[string]Resolved)
	for i := range prefetches {
		s.Prefetches = append(s.Prefetches, Prefetch{Key: fmt.Sprintf("team/p%d", i), UID: fmt.Sprint(i), Resolution: "1", Images: names, Resolved: resolved})
	}
	retries := int32(0)
	for i := range nodes {
		n := Node{Name: fmt.Sprintf("node-%05d", i), Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: make(map[string]Entry),
			Labels: map[string]string{"kubernetes.io/os": "linux"}}
		for j := range 50 {
			n.Hints = append(n.Hints, fmt.Sprintf("registry.example.com/other/app%d:v1", j))
		}
		for _, name := range names {
			digest := "sha256:" + name
			resolved[name] = Resolved{Digest: digest, For: "1"}
			if float64(i) < held*float64(nodes) {
				n.Hints = append(n.Hints, name, byDigest(name, digest))
				n.Entries[name] = Entry{
					Wanted: &v1alpha1.NodeImage{Name: name, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyMirror,
						Retention: v1alpha1.RetentionPinned, ImageDownloadRetryLimit: &retries},
					Status: &v1alpha1.NodeImageStatus{Name: name, State: v1alpha1.ImagePresent, Digest: digest, Source: v1alpha1.SourceMirror},
				}
			}
		}
		s.Nodes = append(s.Nodes, n)
	}
	return s
}
