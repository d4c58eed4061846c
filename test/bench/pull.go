// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/procfs"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/figures"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// pull measures what an agent adds to the work of its containerd, by pulls of 1 GiB in
// pairs, and how much memory it takes.
func pull(ctx context.Context, opts *options, r *figures.Results) (err error) {
	m, err := start(ctx, opts, 2, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	seed, peer := m.Cluster.Nodes()[0], m.Cluster.Nodes()[1]
	for run := range opts.runs {
		if err := m.memory(ctx, r, seed, peer); err != nil {
			return err
		}
		// Whoever is first has the colder caches: they take turns.
		ways := []func(context.Context, *cluster.Node, string) (*pulled, error){m.pullByCtr, m.pullByAgent}
		var ctr, agent *pulled
		taken := []**pulled{&ctr, &agent}
		again := 0
		for turn := range ways {
			who := (turn + run) % len(ways)
			retakes, err := m.inTurn(ctx, func(name string) (err error) {
				*taken[who], err = ways[who](ctx, seed, name)
				return err
			})
			if err != nil {
				return err
			}
			again += retakes
		}
		r.Add("pull_vs_ctr_ratio", agent.pull().Seconds()/ctr.pull().Seconds(), "ratio")
		r.Add("ready_vs_ctr_ratio", agent.all().Seconds()/ctr.all().Seconds(), "ratio")
		r.Add("pull_begins_after", milliseconds(agent.first.Sub(agent.began)), "ms")
		r.Add("ready_after_pull", milliseconds(agent.ended.Sub(agent.last)), "ms")
		r.Count("turns_taken_again", again, "turns")
		tell("ctr %.2f s of %.2f s, agent %.2f s of %.2f s",
			ctr.pull().Seconds(), ctr.all().Seconds(), agent.pull().Seconds(), agent.all().Seconds())
	}
	return nil
}

// inTurn measures the pull of a new image by clean disks, again and again until nobody
// disturbed it, and returns how often it was disturbed.
func (m *machinery) inTurn(ctx context.Context, measure func(name string) error) (again int, err error) {
	var name string
	prepare := func() (err error) {
		if err := m.drop(ctx); err != nil {
			return err
		}
		name, err = m.push(layers, images.GiB)
		return err
	}
	return undisturbed(ctx, prepare, func() error { return measure(name) })
}

// pulled has the times of a pull that can be seen from outside, whoever makes it: the user begins;
// the registry gets the first request; the last event of the image arrives; the user knows of the
// end.
type pulled struct {
	began, first, last, ended time.Time
}

func (p *pulled) all() time.Duration  { return p.ended.Sub(p.began) }
func (p *pulled) pull() time.Duration { return p.last.Sub(p.first) }

// pullByCtr has ctr pull from the registry.
func (m *machinery) pullByCtr(ctx context.Context, node *cluster.Node, name string) (*pulled, error) {
	return m.watched(ctx, node, name, func() (time.Duration, error) {
		return ctrPull(ctx, []*cluster.Node{node}, name, plainly)
	})
}

// pullByAgent has the node's agent pull from the registry, for an ImagePrefetch.
func (m *machinery) pullByAgent(ctx context.Context, node *cluster.Node, name string) (*pulled, error) {
	return m.watched(ctx, node, name, func() (time.Duration, error) {
		return m.bring(ctx, v1alpha1.ImagePrefetchSpec{NodeSelector: only(node)}, name)
	})
}

func (m *machinery) watched(ctx context.Context, node *cluster.Node, name string, do func() (time.Duration, error)) (*pulled, error) {
	told, stop, err := listen(ctx, []*cluster.Node{node})
	if err != nil {
		return nil, err
	}
	defer stop()
	p := &pulled{began: time.Now()}
	took, err := do()
	if err != nil {
		return nil, err
	}
	p.ended = p.began.Add(took)
	requests := m.Upstream.Requests()
	if clients := requests.Clients(); !slices.Equal(clients, []string{node.IP}) {
		return nil, fmt.Errorf("%v asked the registry for %s, want %s alone", clients, name, node.Name)
	}
	p.first = requests[0].Time
	p.last, err = complete(gather(ctx, told), name)
	return p, err
}

// memory measures the peak memory of new agents: after a small image, as a seed and as a peer, and
// after a large one.
func (m *machinery) memory(ctx context.Context, r *figures.Results, seed, peer *cluster.Node) error {
	for _, node := range []*cluster.Node{seed, peer} {
		m.Agent(node).Kill()
		if _, err := m.StartAgent(ctx, node); err != nil {
			return err
		}
	}
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
		r.Add("agent_peak_rss"+image.suffix, most, "MiB")
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
