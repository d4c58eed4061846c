// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// timeline tells when the nodes got what.
type timeline struct {
	began time.Time
	told  <-chan occurrence
	stop  func()
}

// observe begins a timeline; nil if none is wanted.
func (m *machinery) observe(ctx context.Context, opts *options) (*timeline, error) {
	if !opts.timeline {
		return nil, nil
	}
	told, stop, err := listen(ctx, m.Cluster.Nodes())
	return &timeline{time.Now(), told, stop}, err
}

// print ends it, and writes a line per node: the seconds at which something was there.
func (t *timeline) print() {
	if t == nil {
		return
	}
	t.stop()
	lines := map[string][]string{}
	var nodes []string
	for {
		select {
		case o := <-t.told:
			what := "*" // an image record
			if o.digest != "" {
				what = o.digest[len("sha256:"):][:4]
			}
			if lines[o.node.Name] == nil {
				nodes = append(nodes, o.node.Name)
			}
			lines[o.node.Name] = append(lines[o.node.Name], fmt.Sprintf("%.1f %s", o.at.Sub(t.began).Seconds(), what))
			continue
		default:
		}
		break
	}
	slices.Sort(nodes)
	for _, node := range nodes {
		tell("%s: %s", node, strings.Join(lines[node], ", "))
	}
}
