// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// table shows a line per node and image. On a terminal it stays in its place;
// elsewhere each change is a line.
type table struct {
	began time.Time
	live  bool
	rows  map[string]string // by node and image
	lines int               // drawn last, on a terminal
}

func newTable(began time.Time) *table {
	info, err := os.Stdout.Stat()
	return &table{
		began: began,
		live:  err == nil && info.Mode()&os.ModeCharDevice != 0,
		rows:  map[string]string{},
	}
}

const rowFormat = "%-10s %-37s %-8s %10s  %s"

func (t *table) update(set *v1alpha1.NodeImageSet) {
	for _, image := range set.Status.Images {
		key := set.Name + " " + image.Name
		row := fmt.Sprintf(rowFormat, set.Name, image.Name, image.State, mebibytes(image.PulledBytes), cmp.Or(string(image.Source), "-"))
		if image.Reason != "" {
			row += "  " + image.Reason
		}
		if t.rows[key] == row {
			continue
		}
		if len(t.rows) == 0 {
			t.print("   TIME", fmt.Sprintf(rowFormat, "NODE", "IMAGE", "STATE", "RECEIVED", "SOURCE"))
		}
		t.rows[key] = row
		if !t.live {
			t.print(fmt.Sprintf("%6.1fs", time.Since(t.began).Seconds()), row)
		}
	}
	if t.live {
		t.redraw()
	}
}

func (t *table) redraw() {
	if t.lines > 0 {
		fmt.Printf("\033[%dA", t.lines)
	}
	for _, key := range slices.Sorted(maps.Keys(t.rows)) {
		fmt.Print("\033[2K")
		t.print(fmt.Sprintf("%6.1fs", time.Since(t.began).Seconds()), t.rows[key])
	}
	t.lines = len(t.rows)
}

func (t *table) print(when, row string) { fmt.Println(when + "  " + row) }

// complete fails unless each node has each image that it was seen with, and all
// nodes were seen.
func (t *table) complete(nodes int) error {
	seen := map[string]bool{}
	for key, row := range t.rows {
		if !strings.Contains(row, string(v1alpha1.ImagePresent)) {
			return fmt.Errorf("the prefetch is Ready, but not all is Present: %s", row)
		}
		node, _, _ := strings.Cut(key, " ")
		seen[node] = true
	}
	if len(seen) != nodes {
		return fmt.Errorf("the prefetch is Ready, but only %d of %d nodes have the images", len(seen), nodes)
	}
	return nil
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
