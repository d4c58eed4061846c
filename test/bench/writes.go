// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/audit"
	"github.com/sluice-dev/sluice/test/figures"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// writes counts what distributions without faults cost the API server: all that
// Sluice's accounts wrote until nothing more came, over nodes times images. First three
// small images that come together, then one that takes most of a minute over the uplink.
func writes(ctx context.Context, opts *options, r *figures.Results) error {
	if err := countWrites(ctx, opts, r, "api_writes_per_node_image", 0, 8*images.MiB, 8*images.MiB, 8*images.MiB); err != nil {
		return err
	}
	return countWrites(ctx, opts, r, "api_writes_per_node_image_slow", opts.uplink, opts.size*images.MiB)
}

// countWrites brings images of these sizes to four nodes, over an uplink of so many Mbit/s; 0 is
// without a limit.
func countWrites(ctx context.Context, opts *options, r *figures.Results, figure string, uplink int, sizes ...int64) (err error) {
	const nodes = 4
	m, err := start(ctx, opts, nodes, stack.Options{Audit: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	if uplink > 0 {
		if err := narrow(ctx, m.Cluster, uplink); err != nil {
			return err
		}
	}
	for range opts.runs {
		var names []string
		for _, size := range sizes {
			name, err := m.push(4, size)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		began := time.Now()
		took, err := m.bring(ctx, v1alpha1.ImagePrefetchSpec{}, names...)
		if err != nil {
			return err
		}
		written, err := m.settled(ctx, began)
		if err != nil {
			return err
		}
		tell("%s", written.Report())
		r.Add(figure, float64(len(written))/float64(nodes*len(names)), "requests")
		if uplink > 0 {
			r.Add(figure+"_took", took.Seconds(), "s")
		}
		cleared := time.Now()
		if err := m.drop(ctx); err != nil {
			return err
		}
		if _, err := m.settled(ctx, cleared); err != nil {
			return err
		}
	}
	return nil
}

// settled returns what Sluice has written since, when it has written nothing for a
// while. The longest that an agent puts off a write is some seconds.
func (m *machinery) settled(ctx context.Context, since time.Time) (audit.Writes, error) {
	const quiet, bound = 5 * time.Second, time.Minute
	called := time.Now()
	var written audit.Writes
	for last := time.Now(); time.Since(last) < quiet; {
		all, err := audit.Read(m.Cluster.AuditLog())
		if err != nil {
			return nil, err
		}
		now := all.Where(audit.By(stack.Namespace), audit.After(since), audit.Distributing)
		if len(now) > len(written) {
			last = time.Now()
		}
		written = now
		if time.Since(called) > bound {
			return nil, fmt.Errorf("the writes went on after %v:\n%s", bound, written.Report())
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return written, nil
}
