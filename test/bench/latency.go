// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// latency measures from the moment when the last node's containerd has the image to
// that when a watching client sees Ready, over many small images, one after the other.
func latency(ctx context.Context, opts *options) (err error) {
	m, err := start(ctx, opts, 3, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()

	var millis, totals []float64
	for range opts.rounds {
		name, err := m.push(2, images.MiB)
		if err != nil {
			return err
		}
		took, total, err := m.latencyOf(ctx, name)
		if err != nil {
			return err
		}
		millis = append(millis, float64(took.Microseconds())/1000)
		totals = append(totals, total.Seconds())
	}
	figure("ready_latency_p50", percentile(millis, 50), "ms")
	figure("ready_latency_p99", percentile(millis, 99), "ms")
	figure("ready_latency_max", percentile(millis, 100), "ms")
	figure("small_image_all_nodes_p50", percentile(totals, 50), "s")
	figure("small_image_all_nodes_p99", percentile(totals, 99), "s")
	return nil
}

// latencyOf returns also how long all of it took, from the creation of the prefetch.
func (m *machinery) latencyOf(ctx context.Context, name string) (took, total time.Duration, err error) {
	nodes := m.Cluster.Nodes()
	told, stop, err := listen(ctx, nodes)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	total, err = m.bring(ctx, v1alpha1.ImagePrefetchSpec{}, name)
	if err != nil {
		return 0, 0, err
	}
	ready := time.Now()
	// The name that Pods use is what a node gets last; later changes of its record are
	// of its labels.
	complete := map[*cluster.Node]time.Time{}
	var last time.Time
	for len(complete) < len(nodes) {
		select {
		case o := <-told:
			if _, before := complete[o.node]; o.name == name && !before {
				complete[o.node] = o.at
				last = later(last, o.at)
			}
		case <-time.After(time.Second):
			return 0, 0, fmt.Errorf("the prefetch is Ready, but only %d of %d containerds told of %s", len(complete), len(nodes), name)
		}
	}
	return ready.Sub(last), total, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
