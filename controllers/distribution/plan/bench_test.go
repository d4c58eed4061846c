// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// BenchmarkNext measures one plan at the beginning, in the middle and at the end of a distribution.
// The time per node and image must not grow with the number of either.
func BenchmarkNext(b *testing.B) {
	for _, size := range []struct{ nodes, images, prefetches int }{
		{500, 10, 1}, {5_000, 10, 1}, {50_000, 10, 1}, {5_000, 100, 1}, {5_000, 10, 1_000},
	} {
		for _, stage := range []struct {
			name  string
			share float64
		}{{"begin", 0}, {"middle", 0.5}, {"end", 1}} {
			b.Run(fmt.Sprintf("nodes=%d/images=%d/prefetches=%d/%s", size.nodes, size.images, size.prefetches, stage.name), func(b *testing.B) {
				state := distributing(size.nodes, size.images, size.prefetches, stage.share)
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

// exceedingCapacity is a cluster of 200 nodes where each prefetch wants images of its own on a
// quarter of the nodes, and all together are more than a NodeImageSet takes.
func exceedingCapacity(prefetches int) State {
	s := distributing(200, 0, prefetches, 0)
	for i := range s.Prefetches {
		s.Prefetches[i].Replicas = new(int32(50))
		for j := range 10 {
			s.Prefetches[i].Images = append(s.Prefetches[i].Images, fmt.Sprintf("registry.example.com/team%d/app%d@sha256:%d", i, j, j))
		}
	}
	return s
}

// distributing is a cluster in which the first nodes, the given part of all, have every image.
func distributing(nodes, images, prefetches int, share float64) State {
	s := State{Now: time.Unix(1_700_000_000, 0)}
	var names []string
	for i := range images {
		names = append(names, fmt.Sprintf("registry.example.com/team/app%d:v1", i))
	}
	resolved := make(map[string]Resolved)
	for i := range prefetches {
		s.Prefetches = append(s.Prefetches, Prefetch{Key: fmt.Sprintf("team/p%d", i), UID: fmt.Sprint(i), Generation: 1, Images: names, Resolved: resolved})
	}
	retries := int32(0)
	for i := range nodes {
		n := Node{Name: fmt.Sprintf("node-%05d", i), Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: make(map[string]Entry),
			Labels: map[string]string{"kubernetes.io/os": "linux"}}
		for j := range 50 {
			n.KubeletImages = append(n.KubeletImages, fmt.Sprintf("registry.example.com/other/app%d:v1", j))
		}
		for _, name := range names {
			digest := "sha256:" + name
			resolved[name] = Resolved{Digest: digest}
			if float64(i) < share*float64(nodes) {
				n.KubeletImages = append(n.KubeletImages, name, byDigest(name, digest))
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

// BenchmarkGrowth compares the CPU time of a plan for 12,000 nodes with that of one for 3,000;
// neither fits into the CPU's caches. A ratio of 4 is linear, one of 16 quadratic. It sees also the
// work that allocates nothing, which TestMemoryGrowsLinearly does not.
func BenchmarkGrowth(b *testing.B) {
	const few, many, most = 3000, 12000, 8
	for _, c := range []struct {
		stage string
		state func(nodes int) State
	}{
		{"begin", func(nodes int) State { return distributing(nodes, 5, 1, 0) }},
		{"middle", func(nodes int) State { return distributing(nodes, 5, 1, 0.5) }},
		{"replicas", func(nodes int) State { return withReplicasOnHalf(distributing(nodes, 5, 5, 0.5)) }},
		{"nodes that get nothing", func(nodes int) State { return withStarvedNodes(distributing(nodes, 5, 1, 0.5)) }},
	} {
		b.Run(c.stage, func(b *testing.B) {
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			took := func(state State) time.Duration {
				runtime.GC()
				began := cpuTime(b)
				Next(state, DefaultLimits())
				return cpuTime(b) - began
			}
			small, large := c.state(few), c.state(many)
			for b.Loop() {
				// The shortest of several is what the plan takes; the rest is what else the machine
				// does, which slows down the larger one more: it needs the caches.
				bestOfSmall, bestOfLarge, ratio := time.Hour, time.Hour, math.Inf(1)
				for round := 0; round < 3 || round < 20 && ratio > most; round++ {
					bestOfSmall, bestOfLarge = min(bestOfSmall, took(small)), min(bestOfLarge, took(large))
					ratio = bestOfLarge.Seconds() / bestOfSmall.Seconds()
				}
				b.ReportMetric(ratio, "ratio")
				if ratio > most {
					b.Errorf("four times the nodes take %.1f times as long", ratio)
				}
			}
		})
	}
}

// cpuTime is the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// withStarvedNodes has every tenth of the last nodes pull for a minute and receive nothing.
func withStarvedNodes(s State) State {
	for i := 0; i < len(s.Nodes)/2; i += 10 {
		complete, starved := s.Nodes[i].Entries, s.Nodes[len(s.Nodes)-1-i].Entries
		for image, entry := range complete {
			status := *entry.Status
			status.State, status.Attempts, entry.ProgressAt = v1alpha1.ImagePulling, 1, s.Now.Add(-time.Minute)
			starved[image] = Entry{Wanted: entry.Wanted, Status: &status, ChangedAt: entry.ProgressAt, ProgressAt: entry.ProgressAt}
			entry.ChangedAt = entry.ProgressAt
			complete[image] = entry
		}
	}
	return s
}

// withReplicasOnHalf has every prefetch want half of the nodes as replicas.
func withReplicasOnHalf(s State) State {
	for i := range s.Prefetches {
		s.Prefetches[i].Replicas = new(int32(len(s.Nodes) / 2))
	}
	return s
}
