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

// disk remembers where the daemon keeps content and snapshots, and which of it was
// said to be out of sight.
type disk struct {
	mu      sync.Mutex
	roots   []string
	skipped map[string]bool
}

// skip says whether a root is skipped for the first time.
func (d *disk) skip(root string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
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
// where the kubelet begins to delete images.
func (r *Runtime) room(ctx context.Context, missing int64) error {
	if r.MinFreeDisk <= 0 || missing == 0 {
		return nil
	}
	roots, err := r.roots(ctx)
	if err != nil {
		return err
	}
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
		if err := fits(root, missing, int64(stat.Bavail)*stat.Bsize, int64(stat.Blocks)*stat.Bsize, r.MinFreeDisk); err != nil {
			return err
		}
		if err := fitsInodes(root, stat.Ffree, stat.Files); err != nil {
			return err
		}
	}
	return nil
}

// fitsInodes lets pass a filesystem that does not count its inodes.
func fitsInodes(root string, free, total uint64) error {
	if float64(free) >= float64(total)*minFreeInodes {
		return nil
	}
	return fmt.Errorf("%w: %d of %d inodes are free on %s, of which %.0f %% must stay free",
		nodeagent.ErrInsufficientDisk, free, total, root, 100*minFreeInodes)
}

// fits takes content and snapshots to be on one filesystem, as they nearly always are.
func fits(root string, missing, free, total int64, minFree float64) error {
	after := float64(free) - float64(missing)*(1+unpackedFactor)
	if after >= float64(total)*minFree {
		return nil
	}
	return fmt.Errorf("%w: %d bytes to pull on %s with %d of %d bytes free, of which %.0f %% must stay free",
		nodeagent.ErrInsufficientDisk, missing, root, free, total, 100*minFree)
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
