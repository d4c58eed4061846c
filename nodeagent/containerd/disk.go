// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/nodeagent"
)

// unpackedFactor is what an image takes when it is unpacked, in multiples of its
// compressed size; nothing in a manifest tells it. Usual images are between 2 and 3.
const unpackedFactor = 2.5

// minFreeInodes is the share of inodes below which the kubelet begins to delete images
// (imagefs.inodesFree). Nothing tells how many an image takes.
const minFreeInodes = 0.05

// disk remembers where the daemon keeps content and snapshots, which of it was said
// to be out of sight, and which pulls it has room for.
type disk struct {
	mu      sync.Mutex
	roots   []string
	skipped map[string]bool
	pulls   map[*meter]bool
}

// reserved is what running pulls other than m's will still take. It is called with the
// lock held.
func (d *disk) reserved(m *meter) (sum int64) {
	for other := range d.pulls {
		outstanding := other.outstanding()
		if outstanding == 0 {
			delete(d.pulls, other)
		}
		if other != m {
			sum += outstanding
		}
	}
	return sum
}

// reserve is called with the lock held.
func (d *disk) reserve(m *meter, bytes int64) {
	if d.pulls == nil {
		d.pulls = map[*meter]bool{}
	}
	d.pulls[m] = true
	m.reserve(bytes)
}

// skip says whether a root is skipped for the first time. It is called with the lock held.
func (d *disk) skip(root string) bool {
	if d.skipped[root] {
		return false
	}
	if d.skipped == nil {
		d.skipped = map[string]bool{}
	}
	d.skipped[root] = true
	return true
}

// room refuses a pull that would bring a filesystem of the daemon past the line
// where the kubelet begins to delete images, by itself or with the others that run.
func (r *Runtime) room(ctx context.Context, m *meter, missing int64) error {
	if r.MinFreeDisk <= 0 || missing == 0 {
		return nil
	}
	roots, err := r.roots(ctx)
	if err != nil {
		return err
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	// Before the free space: what arrives between the two counts twice, not never.
	reserved := r.disk.reserved(m)
	for _, root := range roots {
		var stat unix.Statfs_t
		err := unix.Statfs(root, &stat)
		if errors.Is(err, fs.ErrNotExist) {
			if r.disk.skip(root) {
				r.Log.Info("Skipped disk check: path is not mounted here", "path", root)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("look up free space of %q: %w", root, err)
		}
		if err := fits(root, missing, reserved, int64(stat.Bavail)*stat.Bsize, int64(stat.Blocks)*stat.Bsize, r.MinFreeDisk); err != nil {
			return err
		}
		if err := fitsInodes(root, stat.Ffree, stat.Files); err != nil {
			return err
		}
	}
	r.disk.reserve(m, need(missing))
	return nil
}

// need is what content takes with what is unpacked of it.
func need(missing int64) int64 { return int64(float64(missing) * (1 + unpackedFactor)) }

// fitsInodes lets pass a filesystem that does not count its inodes.
func fitsInodes(root string, free, total uint64) error {
	if float64(free) >= float64(total)*minFreeInodes {
		return nil
	}
	return fmt.Errorf("%w: %d of %d inodes are free on %s, of which %.0f %% must stay free",
		nodeagent.ErrInsufficientDisk, free, total, root, 100*minFreeInodes)
}

// fits takes content and snapshots to be on one filesystem, as they nearly always are.
func fits(root string, missing, reserved, free, total int64, minFree float64) error {
	after := free - reserved - need(missing)
	if float64(after) >= float64(total)*minFree {
		return nil
	}
	return fmt.Errorf("%w: %d bytes to pull on %s with %d of %d bytes free, of which other pulls take %d and %.0f %% must stay free",
		nodeagent.ErrInsufficientDisk, missing, root, free, total, reserved, 100*minFree)
}

// roots asks the daemon where it keeps things.
func (r *Runtime) roots(ctx context.Context) ([]string, error) {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if r.disk.roots != nil {
		return r.disk.roots, nil
	}
	roots := []string{}
	for _, filter := range []string{
		"type==io.containerd.content.v1",
		fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%s", r.Snapshotter),
	} {
		response, err := r.client.IntrospectionService().Plugins(ctx, filter)
		if err != nil {
			return nil, fmt.Errorf("ask for plugin %q: %w", filter, err)
		}
		for _, plugin := range response.Plugins {
			if root := plugin.Exports["root"]; root != "" {
				roots = append(roots, root)
			}
		}
	}
	r.disk.roots = roots
	return roots, nil
}
