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
	"github.com/sluice-dev/sluice/test/figures"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// latency measures from the moment when the last node's containerd has the image to
// that when a watching client sees Ready, over many small images, one after the other.
func latency(ctx context.Context, opts *options, r *figures.Results) (err error) {
	m, err := start(ctx, opts, 3, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	ready, total := r.Percentiles("ready_latency", "ms"), r.Percentiles("small_image_all_nodes", "s")
	for range opts.runs {
		var readies, totals []float64
		for range opts.rounds {
			name, err := m.push(2, images.MiB)
			if err != nil {
				return err
			}
			took, all, err := m.latencyOf(ctx, name)
			if err != nil {
				return err
			}
			readies = append(readies, milliseconds(took))
			totals = append(totals, all.Seconds())
		}
		ready.Add(readies, 50, 99, 100)
		total.Add(totals, 50, 99, 100)
		if err := m.drop(ctx); err != nil {
			return err
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

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
