// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// pull measures what an agent adds to the work of its containerd, by pulls of 1 GiB in
// pairs, and how much memory it takes. The agent's time is that of the user: from the
// creation of the ImagePrefetch to Ready.
func pull(ctx context.Context, opts *options) (err error) {
	m, err := start(ctx, opts, 2, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	seed, peer := m.Cluster.Nodes()[0], m.Cluster.Nodes()[1]

	if err := memory(ctx, m, seed, peer); err != nil {
		return err
	}
	var ratios []float64
	var name string
	for pair := range opts.pairs {
		var ctr, agent time.Duration
		for turn := range 2 {
			if err := m.drop(ctx); err != nil {
				return err
			}
			if name, err = m.push(layers, images.GiB); err != nil {
				return err
			}
			// Whoever is first has the colder caches: they take turns.
			if turn == pair%2 {
				ctr, err = ctrPull(ctx, []*cluster.Node{seed}, name, plainly)
			} else {
				agent, err = m.bring(ctx, v1alpha1.ImagePrefetchSpec{NodeSelector: only(seed)}, name)
			}
			if err != nil {
				return err
			}
		}
		ratios = append(ratios, agent.Seconds()/ctr.Seconds())
		tell("ctr %.2f s, agent %.2f s", ctr.Seconds(), agent.Seconds())
	}
	figure("pull_vs_ctr_ratio", median(ratios), "ratio")

	return nil
}

// memory prints how much an agent had at the most when it had pulled a small image, as a
// seed and as a peer, and when it had pulled a large one.
func memory(ctx context.Context, m *machinery, seed, peer *cluster.Node) error {
	for _, image := range []struct {
		suffix string
		size   int64
	}{
		{"_256MiB", images.GiB / 4},
		{"", images.GiB},
	} {
		if err := m.drop(ctx); err != nil {
			return err
		}
		name, err := m.push(layers, image.size)
		if err != nil {
			return err
		}
		most := 0.0
		for _, node := range []*cluster.Node{seed, peer} {
			if _, err := m.bring(ctx, v1alpha1.ImagePrefetchSpec{NodeSelector: only(node)}, name); err != nil {
				return err
			}
			rss, err := peakRSS(m.Agent(node).Pid())
			if err != nil {
				return err
			}
			most = max(most, rss)
		}
		figure("agent_peak_rss"+image.suffix, most, "MiB")
	}
	return nil
}

func only(node *cluster.Node) map[string]string {
	return map[string]string{"kubernetes.io/hostname": node.Name}
}

// peakRSS is the most memory that the process ever had, in MiB.
func peakRSS(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", pid)
}

func median(values []float64) float64 { return percentile(values, 50) }

// percentile is the smallest value that so many percent of them do not exceed.
func percentile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := (len(sorted)*percent + 99) / 100
	return sorted[max(rank, 1)-1]
}
