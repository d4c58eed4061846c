// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/figures"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// layers is how many the images have that are large.
const layers = 8

// spread measures how long all nodes take beside one that pulls alone.
func spread(ctx context.Context, opts *options, r *figures.Results) error {
	return spreadWith(ctx, opts, r, "", "--behave=well")
}

func spreadSpegel(ctx context.Context, opts *options, r *figures.Results) error {
	return spreadWith(ctx, opts, r, "_spegel")
}

func spreadWith(ctx context.Context, opts *options, r *figures.Results, suffix string, mirrorFlags ...string) (err error) {
	m, err := start(ctx, opts, opts.nodes, stack.Options{MirrorFlags: mirrorFlags})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	if err := narrow(ctx, m.Cluster, opts.uplink); err != nil {
		return err
	}
	for range opts.runs {
		alone, err := m.alone(ctx, opts)
		if err != nil {
			return err
		}
		if err := m.spreadOnce(ctx, opts, r, suffix, alone); err != nil {
			return err
		}
	}
	return nil
}

// spreadOnce brings an image to all nodes, and leaves none of it.
func (m *machinery) spreadOnce(ctx context.Context, opts *options, r *figures.Results, suffix string, alone time.Duration) error {
	name, err := m.push(layers, opts.size*images.MiB)
	if err != nil {
		return err
	}
	times, err := m.observe(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	all, err := m.bring(ctx, v1alpha1.ImagePrefetchSpec{}, name)
	told := times.end(ctx)
	if opts.timeline {
		times.print(told)
	}
	if err != nil {
		return err
	}
	clients := m.Upstream.Requests().Clients()
	if len(clients) != 1 {
		return fmt.Errorf("%d nodes asked the upstream, want one: %v", len(clients), clients)
	}
	atSeed, atPeers := lastBlobs(told, clients[0])
	r.Add("one_node_alone"+suffix, alone.Seconds(), "s")
	r.Add("all_nodes"+suffix, all.Seconds(), "s")
	r.Add("all_nodes_vs_one_pull_ratio"+suffix, all.Seconds()/alone.Seconds(), "ratio")
	r.Add("all_nodes_uplink"+suffix, m.uplink(), "MiB")
	r.Add("last_blob_at_seed"+suffix, atSeed.Sub(began).Seconds(), "s")
	r.Add("last_blob_at_peers_later"+suffix, atPeers.Sub(atSeed).Seconds(), "s")
	r.Add("ready_after_last_blob"+suffix, began.Add(all).Sub(later(atSeed, atPeers)).Seconds(), "s")
	return m.drop(ctx)
}

// alone is how long one node takes from upstream, with nobody else about.
func (m *machinery) alone(ctx context.Context, opts *options) (time.Duration, error) {
	name, err := m.push(layers, opts.size*images.MiB)
	if err != nil {
		return 0, err
	}
	took, err := ctrPull(ctx, m.Cluster.Nodes()[:1], name, plainly)
	if err != nil {
		return 0, err
	}
	tell("one node alone took %.1f s", took.Seconds())
	return took, m.drop(ctx)
}

// uplink is how many MiB the upstream registry has sent since the last drop.
func (m *machinery) uplink() float64 {
	var bytes int64
	for _, request := range m.Upstream.Requests() {
		bytes += request.Bytes
	}
	return float64(bytes) / float64(images.MiB)
}

// uncoordinated measures what there is without Sluice: every node pulls for itself,
// from the registry, or from the mirror first, which behaves as Spegel does.
func uncoordinated(ctx context.Context, opts *options, r *figures.Results) (err error) {
	m, err := start(ctx, opts, opts.nodes, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	if err := narrow(ctx, m.Cluster, opts.uplink); err != nil {
		return err
	}
	for range opts.runs {
		alone, err := m.alone(ctx, opts)
		if err != nil {
			return err
		}
		for _, way := range []struct {
			name string
			how  []string
		}{{"every_node_from_upstream", plainly}, {"every_node_through_mirror", fromMirrors}} {
			name, err := m.push(layers, opts.size*images.MiB)
			if err != nil {
				return err
			}
			took, err := ctrPull(ctx, m.Cluster.Nodes(), name, way.how)
			if err != nil {
				return err
			}
			r.Add(way.name, took.Seconds(), "s")
			r.Add(way.name+"_vs_one_pull_ratio", took.Seconds()/alone.Seconds(), "ratio")
			r.Add(way.name+"_uplink", m.uplink(), "MiB")
			if err := m.drop(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}
