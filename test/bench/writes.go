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
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// writes counts what distributions without faults cost the API server: of images that
// share the writes and are there in seconds, and of one alone that takes long.
func writes(ctx context.Context, opts *options, r *results) (err error) {
	m, err := start(ctx, opts, writeNodes, stack.Options{Audit: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	for range opts.runs {
		if err := m.countWrites(ctx, r, "api_writes_per_node_image", 3, 8*images.MiB); err != nil {
			return err
		}
	}
	m.Upstream.SetRate(2 * images.MiB)
	for range opts.runs {
		if err := m.countWrites(ctx, r, "api_writes_per_node_image_44s", 1, 88*images.MiB); err != nil {
			return err
		}
	}
	return nil
}

const writeNodes = 4

// countWrites brings images and has the figure count all that Sluice's accounts wrote
// until nothing more came, over nodes times images.
func (m *machinery) countWrites(ctx context.Context, r *results, figure string, count int, size int64) error {
	var names []string
	for range count {
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
	tell("%s: %v, until all nodes had them after %.1f s\n%s", figure, names, took.Seconds(), written.Report())
	r.add(figure, float64(len(written))/float64(writeNodes*len(names)), "requests")
	cleared := time.Now()
	if err := m.drop(ctx); err != nil {
		return err
	}
	_, err = m.settled(ctx, cleared)
	return err
}

// settled returns what Sluice has written since, when it has written nothing for a
// while. The longest that an agent puts off a write is some seconds.
func (m *machinery) settled(ctx context.Context, since time.Time) (audit.Writes, error) {
	const quiet, bound = 5 * time.Second, 2 * time.Minute
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
		if time.Since(since) > bound {
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
