// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// layers is how many the images have that are large.
const layers = 8

// spread measures how long all nodes take beside one that pulls alone.
func spread(ctx context.Context, opts *options) error {
	return spreadWith(ctx, opts, "")
}

func spreadSpegel(ctx context.Context, opts *options) error {
	return spreadWith(ctx, opts, "_spegel", "--behave=spegel")
}

func spreadWith(ctx context.Context, opts *options, suffix string, mirrorFlags ...string) (err error) {
	m, err := start(ctx, opts, opts.nodes, stack.Options{MirrorFlags: mirrorFlags})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	if err := narrow(ctx, m.Cluster, opts.uplink); err != nil {
		return err
	}
	alone, err := m.alone(ctx, opts)
	if err != nil {
		return err
	}
	name, err := m.push(layers, opts.size*images.MiB)
	if err != nil {
		return err
	}
	times, err := m.observe(ctx, opts)
	if err != nil {
		return err
	}
	all, err := m.bring(ctx, v1alpha1.ImagePrefetchSpec{}, name)
	times.print()
	if err != nil {
		return err
	}
	figure("one_node_alone"+suffix, alone.Seconds(), "s")
	figure("all_nodes"+suffix, all.Seconds(), "s")
	figure("all_nodes_vs_one_pull_ratio"+suffix, all.Seconds()/alone.Seconds(), "ratio")
	figure("all_nodes_uplink"+suffix, m.uplink(), "MiB")
	return nil
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
func uncoordinated(ctx context.Context, opts *options) (err error) {
	m, err := start(ctx, opts, opts.nodes, stack.Options{MirrorFlags: []string{"--behave=spegel"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	if err := narrow(ctx, m.Cluster, opts.uplink); err != nil {
		return err
	}
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
		figure(way.name, took.Seconds(), "s")
		figure(way.name+"_vs_one_pull_ratio", took.Seconds()/alone.Seconds(), "ratio")
		figure(way.name+"_uplink", m.uplink(), "MiB")
		if err := m.drop(ctx); err != nil {
			return err
		}
	}
	return nil
}
