// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/procfs"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// pull measures what an agent adds to the work of its containerd, by pulls of 1 GiB in
// pairs, and how much memory it takes.
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
	var pulls, readies []float64
	for pair := range opts.pairs {
		var ctr, agent, ready time.Duration
		for turn := range 2 {
			var name string
			prepare := func() (err error) {
				if err := m.drop(ctx); err != nil {
					return err
				}
				name, err = m.push(layers, images.GiB)
				return err
			}
			// Whoever is first has the colder caches: they take turns.
			measure := func() (err error) {
				ctr, err = ctrPull(ctx, []*cluster.Node{seed}, name, plainly)
				return err
			}
			if turn != pair%2 {
				measure = func() (err error) {
					agent, ready, err = agentPull(ctx, m, seed, name)
					return err
				}
			}
			if err := undisturbed(ctx, prepare, measure); err != nil {
				return err
			}
		}
		pulls = append(pulls, agent.Seconds()/ctr.Seconds())
		readies = append(readies, ready.Seconds()/ctr.Seconds())
		tell("ctr %.2f s, agent %.2f s, Ready after %.2f s", ctr.Seconds(), agent.Seconds(), ready.Seconds())
	}
	figure("pull_vs_ctr_ratio", median(pulls), "ratio")
	figure("ready_vs_ctr_ratio", median(readies), "ratio")

	return nil
}

// agentPull has the node's agent pull from the registry. took is what the agent says that
// the pull took, and ready the user's time: from the creation of the ImagePrefetch to Ready.
func agentPull(ctx context.Context, m *machinery, node *cluster.Node, name string) (took, ready time.Duration, err error) {
	before, err := spentOnPulls(ctx, node)
	if err != nil {
		return 0, 0, err
	}
	if ready, err = m.bring(ctx, v1alpha1.ImagePrefetchSpec{NodeSelector: only(node)}, name); err != nil {
		return 0, 0, err
	}
	after, err := spentOnPulls(ctx, node)
	if err == nil && after == before {
		err = fmt.Errorf("the agent of %s has counted no pull of %s", node.Name, name)
	}
	return after - before, ready, err
}

// spentOnPulls is how long the successful pulls from upstream of a node's agent have
// taken together, from its metrics.
func spentOnPulls(ctx context.Context, node *cluster.Node) (time.Duration, error) {
	const metric = "sluice_agent_pull_duration_seconds"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(node.IP, "8080")+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return 0, fmt.Errorf("read metrics of the agent of %s: %w", node.Name, err)
	}
	seconds := 0.0
	for _, m := range families[metric].GetMetric() {
		of := map[string]string{}
		for _, label := range m.GetLabel() {
			of[label.GetName()] = label.GetValue()
		}
		if of["source"] == string(v1alpha1.SourceUpstream) && of["result"] == "Success" {
			seconds += m.GetHistogram().GetSampleSum()
		}
	}
	return time.Duration(seconds * float64(time.Second)), nil
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
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := process.NewStatus()
	return float64(status.VmHWM) / (1 << 20), err
}

func median(values []float64) float64 { return percentile(values, 50) }

// percentile is the smallest value that so many percent of them do not exceed.
func percentile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := (len(sorted)*percent + 99) / 100
	return sorted[max(rank, 1)-1]
}
