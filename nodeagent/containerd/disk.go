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

// unpackedFactor is the unpacked size of an image in multiples of its compressed size. It is an
// estimate, since no manifest tells; for most images it is between 2 and 3.
const unpackedFactor = 2.5

// minFreeInodes is the share of free inodes below which the kubelet begins to delete images
// (imagefs.inodesFree). The check is of the present share only: no manifest tells how many inodes
// an image takes.
const minFreeInodes = 0.05

// disk remembers which pulls have reserved space.
type disk struct {
	mu    sync.Mutex
	pulls map[*meter]bool // that have reserved space
}

// reservedByOthers is the space that running pulls other than m's will still take. The caller holds
// the lock.
func (d *disk) reservedByOthers(m *meter) (sum int64) {
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

// reserve records the pull and its reservation. The caller holds the lock.
func (d *disk) reserve(m *meter, bytes int64) {
	if d.pulls == nil {
		d.pulls = map[*meter]bool{}
	}
	d.pulls[m] = true
	m.reserve(bytes)
}

// reserveDisk reserves space for what a pull still misses. It returns ErrInsufficientDisk if that,
// with the reservations of the other pulls, would take a filesystem below MinFreeDisk, where the
// kubelet begins to delete images.
func (r *Runtime) reserveDisk(ctx context.Context, m *meter, missing int64) error {
	if r.MinFreeDisk <= 0 || missing == 0 {
		return nil
	}
	daemon, err := r.daemon(ctx)
	if err != nil {
		return err
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	// The reservations are read before the free space: a byte that arrives in between then counts
	// twice. In the other order it would not count at all.
	reserved := r.disk.reservedByOthers(m)
	for _, dir := range daemon.dirs {
		if _, err := r.checkDisk(dir, missing, reserved); err != nil {
			return err
		}
	}
	r.disk.reserve(m, sizeOnDisk(missing))
	return nil
}

// checkDisk checks the filesystem of a directory. It returns the share of it that is free; one that is
// not mounted here has none, which is no error.
func (r *Runtime) checkDisk(dir string, missing, reserved int64) (free float64, err error) {
	var stat unix.Statfs_t
	err = unix.Statfs(dir, &stat)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up free space of %q: %w", dir, err)
	}
	free = float64(stat.Bavail) / float64(stat.Blocks)
	if err := checkSpace(dir, missing, reserved, int64(stat.Bavail)*stat.Bsize, int64(stat.Blocks)*stat.Bsize, r.MinFreeDisk); err != nil {
		return free, err
	}
	return free, checkInodes(dir, stat.Ffree, stat.Files)
}

// sizeOnDisk is the space that compressed content takes together with its unpacked form.
func sizeOnDisk(bytes int64) int64 { return int64(float64(bytes) * (1 + unpackedFactor)) }

// checkInodes accepts a filesystem that does not count its inodes, whose total is 0.
func checkInodes(dir string, free, total uint64) error {
	if float64(free) >= float64(total)*minFreeInodes {
		return nil
	}
	return fmt.Errorf("%w: %d of %d inodes are free on %s, of which %.0f %% must stay free",
		nodeagent.ErrInsufficientDisk, free, total, dir, 100*minFreeInodes)
}

// checkSpace assumes that content and snapshots are on one filesystem, as they nearly always are.
func checkSpace(dir string, missing, reserved, free, total int64, minFreeShare float64) error {
	after := free - reserved - sizeOnDisk(missing)
	if float64(after) >= float64(total)*minFreeShare {
		return nil
	}
	return fmt.Errorf("%w: %d bytes to pull on %s with %d of %d bytes free, of which other pulls take %d and %.0f %% must stay free",
		nodeagent.ErrInsufficientDisk, missing, dir, free, total, reserved, 100*minFreeShare)
}
