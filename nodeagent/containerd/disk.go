// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
)

// unpackedFactor is the unpacked size of an image in multiples of its compressed size. It is an
// estimate, since no manifest tells; for most images it is between 2 and 3.
const unpackedFactor = 2.5

// need is what a pull takes, as far as it is known.
type need struct {
	// content is in bytes that are yet to be fetched.
	content int64
	// snapshots is what is yet to be unpacked.
	snapshots amount
}

func (n need) max(other need) need {
	return need{content: max(n.content, other.content), snapshots: n.snapshots.max(other.snapshots)}
}

// on is the part of it that a file system has to take.
func (n need) on(f filesystem) (sum amount) {
	if f.content {
		sum.bytes += n.content
	}
	if f.snapshots {
		sum = sum.plus(n.snapshots)
	}
	return sum
}

// expect is what an image takes of which this is there.
func expect(local localContent) need {
	return need{content: local.missing, snapshots: amount{bytes: local.packed}.times(unpackedFactor)}
}

// disk shares the room on the node's file systems out to pulls.
type disk struct {
	mu       sync.Mutex
	accounts map[*account]bool // of the pulls that run
	victim   *account          // the pull that was stopped to save the others, until it is undone
	lessons  lessons
	wanted   map[string]bool // the names of the spec's images; nil before they are known

	choosing bool       // somebody is choosing the victim
	clearing sync.Mutex // held by who makes room
}

// account is one pull's part of the disk. Make it with openAccount.
type account struct {
	image nodeagent.PullRequest
	meter *meter
	// ctx is the pull's, which stop ends.
	ctx  context.Context
	stop context.CancelCauseFunc
	// watched is closed when the disk is no longer watched for it; nil before it was.
	watched chan struct{}

	// The disk's lock is for the fields below.

	leaseID  string // empty before there is one
	digest   digest.Digest
	reserved need
	// pulledBefore is what the pull had received when it reserved.
	pulledBefore int64
	// freeBefore is what was free when it reserved, by the folder of the file system, and drop by how much
	// that had become less when the pull was stopped.
	freeBefore map[string]amount
	drop       amount
	// before is what its snapshots had when it began, of an earlier try, and taken what they had when
	// the victim was chosen; nil before that.
	before amount
	taken  *amount
}

// outstanding is what the pull will still take of what it has reserved. Only received bytes make it
// smaller, because nothing tells cheaply how much was unpacked. So it is too large near the end.
func (a *account) outstanding() need {
	n := a.reserved
	n.content = max(0, n.content-a.meter.pulledBytes()+a.pulledBefore)
	return n
}

// openAccount begins a pull, which is to write under the account's context. The caller calls close.
func (d *disk) openAccount(ctx context.Context, image nodeagent.PullRequest, m *meter) *account {
	a := &account{image: image, digest: image.Digest, meter: m}
	a.ctx, a.stop = context.WithCancelCause(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.accounts == nil {
		d.accounts = map[*account]bool{}
	}
	d.accounts[a] = true
	return a
}

// endWatch returns when the disk is no longer watched for the pull, and why the pull was ended, if it was.
func (a *account) endWatch() (stopped error) {
	stopped = context.Cause(a.ctx)
	a.stop(nil)
	if a.watched != nil {
		<-a.watched
	}
	return stopped
}

func (d *disk) setLease(a *account, id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a.leaseID = id
}

// identify takes up what a pull's image is, where the request did not say.
func (d *disk) identify(a *account, dgst digest.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a.digest = dgst
}

func (d *disk) close(a *account) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.accounts, a)
	if d.victim == a {
		d.victim = nil
	}
}

// reserveDisk reserves what a pull of that digest is to write, and watches the disk from then on. It
// returns ErrInsufficientDisk if that, with what the other pulls have reserved, would take a file system to
// its line, and nothing can be given up for it.
func (r *Runtime) reserveDisk(ctx context.Context, a *account, d digest.Digest, n need) error {
	r.disk.identify(a, d)
	if n == (need{}) {
		return nil
	}
	if err := r.disk.checkFull(d); err != nil || r.MinFreeDisk <= 0 {
		return err
	}
	daemon, err := r.daemon(ctx)
	if err != nil {
		return err
	}
	n = r.disk.correct(d, n)
	for {
		short, err := r.tryReserve(daemon, a, n)
		if err != nil {
			return err
		}
		if short == nil {
			break
		}
		if freed, err := r.makeRoom(ctx, short.missing().bytes); err != nil || !freed {
			r.disk.noteRefused(d, n)
			return errors.Join(short, err)
		}
	}
	if a.watched == nil {
		r.watchDisk(daemon, a)
	}
	return nil
}

// reserveKnown is reserveDisk before anything is asked for, if the image did not fit lately.
func (r *Runtime) reserveKnown(ctx context.Context, a *account, d digest.Digest) error {
	return r.reserveDisk(ctx, a, d, r.disk.refusedNeed(d))
}

// tryReserve returns what there is too little of, or nil.
func (r *Runtime) tryReserve(daemon daemonFacts, a *account, n need) (*shortage, error) {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	// The reservations are read before the free space: a byte that arrives in between then counts
	// twice. In the other order it would not count at all.
	reserved := make([]need, 0, len(r.disk.accounts))
	for other := range r.disk.accounts {
		if other != a {
			reserved = append(reserved, other.outstanding())
		}
	}
	filesystems, err := r.lookUp(daemon)
	if err != nil {
		return nil, err
	}
	for _, f := range filesystems {
		short := shortage{filesystem: f, need: n.on(f)}
		for _, other := range reserved {
			short.reserved = short.reserved.plus(other.on(f))
		}
		if short.need != (amount{}) && short.missing() != (amount{}) {
			return &short, nil
		}
	}
	a.reserved, a.pulledBefore, a.freeBefore = n, a.meter.pulledBytes(), map[string]amount{}
	for _, f := range filesystems {
		a.freeBefore[f.dir] = f.free
	}
	return nil, nil
}

// shortage is an ErrInsufficientDisk.
type shortage struct {
	filesystem
	need, reserved amount // by the pull, and by others
}

// missing is what must be freed.
func (s *shortage) missing() amount {
	return s.need.plus(s.reserved).minus(s.room()).max(amount{})
}

func (s *shortage) Unwrap() error { return nodeagent.ErrInsufficientDisk }

func (s *shortage) Error() string {
	if missing := s.missing(); missing.bytes == 0 {
		return fmt.Sprintf("%v: %d inodes must be freed on %s: it has %d of %d free, of which %d must stay free; the image may take %d, and other pulls %d",
			nodeagent.ErrInsufficientDisk, missing.inodes, s.dir, s.free.inodes, s.total.inodes, s.line.plus(s.margin()).inodes, s.need.inodes, s.reserved.inodes)
	}
	return fmt.Sprintf("%v: %s must be freed on %s: it has %s of %s free, of which %s must stay free; the image may take %s, and other pulls %s",
		nodeagent.ErrInsufficientDisk, mebibytes(s.missing().bytes), s.dir, mebibytes(s.free.bytes), mebibytes(s.total.bytes),
		mebibytes(s.line.plus(s.margin()).bytes), mebibytes(s.need.bytes), mebibytes(s.reserved.bytes))
}

// mebibytes is a number of bytes, rounded up, so that a message does not change with each of them.
func mebibytes(bytes int64) string { return fmt.Sprintf("%d MiB", (bytes+1<<20-1)>>20) }
