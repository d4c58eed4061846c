// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// timeline is when the nodes got what, as their containerds told.
type timeline struct {
	began time.Time
	told  <-chan occurrence
	stop  func()
}

// observe begins a timeline.
func (m *machinery) observe(ctx context.Context) (*timeline, error) {
	told, stop, err := listen(ctx, m.Cluster.Nodes())
	return &timeline{time.Now(), told, stop}, err
}

// end returns what was told, when nothing more comes.
func (t *timeline) end(ctx context.Context) []occurrence {
	defer t.stop()
	return gather(ctx, t.told)
}

// print writes a line per node: the seconds at which a blob was there (by the beginning of
// its digest) or an image's record (*).
func (t *timeline) print(all []occurrence) {
	lines := map[string][]string{}
	for _, o := range all {
		what := "*"
		if o.digest != "" {
			what = o.digest[len("sha256:"):][:4]
		}
		if o.snapshot == "" {
			lines[o.node.Name] = append(lines[o.node.Name], fmt.Sprintf("%.1f %s", o.at.Sub(t.began).Seconds(), what))
		}
	}
	for _, node := range slices.Sorted(maps.Keys(lines)) {
		tell("%s: %s", node, strings.Join(lines[node], ", "))
	}
}

// lastBlobs are when the seed had its last blob, and when the last of the other nodes had.
func lastBlobs(all []occurrence, seed string) (atSeed, atPeers time.Time) {
	for _, o := range all {
		switch {
		case o.digest == "":
		case o.node.IP == seed:
			atSeed = later(atSeed, o.at)
		default:
			atPeers = later(atPeers, o.at)
		}
	}
	return atSeed, atPeers
}
