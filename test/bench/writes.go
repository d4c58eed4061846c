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

// writes counts what distributions without faults cost the API server: all that
// Sluice's accounts wrote until nothing more came, over nodes times images.
func writes(ctx context.Context, opts *options, r *results) (err error) {
	const nodes = 4
	m, err := start(ctx, opts, nodes, stack.Options{Audit: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	for range opts.runs {
		var names []string
		for range 3 {
			name, err := m.push(4, 8*images.MiB)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		began := time.Now()
		if _, err := m.bring(ctx, v1alpha1.ImagePrefetchSpec{}, names...); err != nil {
			return err
		}
		written, err := m.settled(ctx, began)
		if err != nil {
			return err
		}
		tell("%s", written.Report())
		r.add("api_writes_per_node_image", float64(len(written))/float64(nodes*len(names)), "requests")
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
