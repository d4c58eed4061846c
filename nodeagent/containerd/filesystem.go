// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"math"

	"golang.org/x/sys/unix"
)

// amount is of what a file system has.
type amount struct{ bytes, inodes int64 }

func (a amount) plus(b amount) amount  { return amount{a.bytes + b.bytes, a.inodes + b.inodes} }
func (a amount) minus(b amount) amount { return amount{a.bytes - b.bytes, a.inodes - b.inodes} }

// max is the larger of the bytes and the larger of the inodes.
func (a amount) max(b amount) amount { return amount{max(a.bytes, b.bytes), max(a.inodes, b.inodes)} }

// covers reports whether there is no less of anything than in b.
func (a amount) covers(b amount) bool { return a.bytes >= b.bytes && a.inodes >= b.inodes }

// times is so much of it, rounded up.
func (a amount) times(factor float64) amount {
	return amount{int64(math.Ceil(float64(a.bytes) * factor)), int64(math.Ceil(float64(a.inodes) * factor))}
}

// filesystem is one on which the daemon writes, as it is now.
type filesystem struct {
	// dir is the folder by which it is known.
	dir string
	// content and snapshots say what the daemon has there.
	content, snapshots bool
	free, total        amount
	// line is what must stay free.
	line amount
}

// minFreeInodes is the share of free inodes below which the kubelet begins to delete images
// (imagefs.inodesFree).
const minFreeInodes = 0.05

const (
	// marginShare of a file system, and no more than maxMargin, is the margin: pulls are stopped so far
	// from the line, for the writes that come until they have ended.
	marginShare = 0.01
	// maxMarginBytes is as much as is written to memory in a tenth of a second.
	maxMarginBytes  = 256 << 20
	maxMarginInodes = 1 << 18
)

func (f filesystem) margin() amount {
	m := f.total.times(marginShare)
	return amount{min(m.bytes, maxMarginBytes), min(m.inodes, maxMarginInodes)}
}

// room is how much may be written before pulls are stopped. It may be negative. A file system that
// does not count its inodes, whose total is 0, has room for any number.
func (f filesystem) room() amount {
	room := f.free.minus(f.line).minus(f.margin())
	if f.total.inodes == 0 {
		room.inodes = math.MaxInt64
	}
	return room
}

// pastLine reports whether less is free than must be.
func (f filesystem) pastLine() bool { return !f.room().plus(f.margin()).covers(amount{}) }

// lookUp looks up the file systems of content and snapshots, which are often one. One that is not
// mounted here is left out; its part then counts on the other.
func (r *Runtime) lookUp(daemon daemonFacts) ([]filesystem, error) {
	content, err := r.lookUpOne(daemon, daemon.contentDir)
	if err != nil {
		return nil, err
	}
	snapshots, err := r.lookUpOne(daemon, daemon.snapshotDir)
	switch {
	case err != nil:
		return nil, err
	case content == nil && snapshots == nil:
		return nil, nil
	case content == nil || snapshots != nil && content.device == snapshots.device:
		snapshots.content, snapshots.snapshots = true, true
		return []filesystem{snapshots.filesystem}, nil
	case snapshots == nil:
		content.content, content.snapshots = true, true
		return []filesystem{content.filesystem}, nil
	default:
		content.content, snapshots.snapshots = true, true
		return []filesystem{content.filesystem, snapshots.filesystem}, nil
	}
}

type mounted struct {
	filesystem
	device uint64
}

// lookUpOne returns nil if the directory is not there.
func (r *Runtime) lookUpOne(daemon daemonFacts, dir string) (*mounted, error) {
	var place unix.Stat_t
	var stat unix.Statfs_t
	err := unix.Stat(dir, &place)
	if err == nil {
		err = unix.Statfs(dir, &stat)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up free space of %q: %w", dir, err)
	}
	found := filesystem{
		dir:   dir,
		free:  amount{int64(stat.Bavail) * stat.Bsize, int64(stat.Ffree)},
		total: amount{int64(stat.Blocks) * stat.Bsize, int64(stat.Files)},
	}
	found.line = amount{
		bytes:  max(found.total.times(r.MinFreeDisk).bytes, daemon.evicts.Bytes(found.total.bytes)),
		inodes: max(found.total.times(minFreeInodes).inodes, daemon.evicts.Inodes(found.total.inodes)),
	}
	return &mounted{found, place.Dev}, nil
}
