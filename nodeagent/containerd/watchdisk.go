// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/sluice-dev/sluice/nodeagent"
)

const (
	// The disk is looked at the more often, the less room there is.
	minLookInterval = 2 * time.Millisecond
	maxLookInterval = 250 * time.Millisecond
	// fastestBytes and fastestInodes are more than a node writes in a second.
	fastestBytes  = 4 << 30
	fastestInodes = 500_000
)

// lookAgainIn is how long a file system with that much room need not be looked at.
func lookAgainIn(room amount) time.Duration {
	seconds := min(float64(room.bytes)/fastestBytes, float64(room.inodes)/fastestInodes)
	return time.Duration(min(max(seconds*float64(time.Second), float64(minLookInterval)), float64(maxLookInterval)))
}

// watchDisk stops the pull, with an ErrInsufficientDisk, before what is written takes a file system to
// its line. It watches until the pull ends.
func (r *Runtime) watchDisk(daemon daemonFacts, a *account) {
	before := r.measure(a.ctx, daemon, a)
	r.disk.mu.Lock()
	a.before = before
	r.disk.mu.Unlock()
	a.watched = make(chan struct{})
	go func() {
		defer close(a.watched)
		var choosing sync.WaitGroup
		defer choosing.Wait()
		for {
			pause, err := r.lookAtDisk(daemon, a, &choosing)
			if err != nil {
				a.stop(err)
			}
			if sleep(a.ctx, pause) != nil {
				return
			}
		}
	}()
}

// lookAtDisk returns an error if the pull is to end. Where the margin begins that is one pull, so that the
// others can go on; where half of it is gone, each.
func (r *Runtime) lookAtDisk(daemon daemonFacts, a *account, choosing *sync.WaitGroup) (pause time.Duration, err error) {
	filesystems, err := r.lookUp(daemon)
	if err != nil {
		return 0, err
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	pause = maxLookInterval
	for _, f := range filesystems {
		room := f.room()
		pause = min(pause, lookAgainIn(room))
		if room.covers(amount{}) || a.reserved.on(f) == (amount{}) {
			continue
		}
		if room.plus(f.margin().times(0.5)).covers(amount{}) && r.disk.victim != a {
			if r.disk.victim == nil && !r.disk.choosing {
				r.disk.choosing = true
				choosing.Go(func() { r.chooseVictim(a.ctx, daemon, room.bytes >= 0) })
			}
			continue
		}
		a.drop = a.freeBefore[f.dir].minus(f.free)
		return 0, fmt.Errorf("%w on %s: the pull was stopped before it, or another program, took what must stay free", nodeagent.ErrInsufficientDisk, f.dir)
	}
	return pause, nil
}

// chooseVictim chooses the pull that ends: the one whose snapshots are the furthest beyond what it has
// reserved. To look that up takes time if there are many files.
func (r *Runtime) chooseVictim(ctx context.Context, daemon daemonFacts, ofInodes bool) {
	r.disk.mu.Lock()
	all := slices.Collect(maps.Keys(r.disk.accounts))
	r.disk.mu.Unlock()
	taken := map[*account]amount{}
	for _, each := range all {
		taken[each] = r.measure(ctx, daemon, each)
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	r.disk.choosing = false
	if ctx.Err() != nil {
		return
	}
	most := int64(0)
	for _, each := range all {
		sum := taken[each]
		each.taken = &sum
		beyond := sum.minus(each.before).minus(each.reserved.snapshots)
		excess := beyond.bytes
		if ofInodes {
			excess = beyond.inodes
		}
		if r.disk.accounts[each] && each.reserved != (need{}) && (r.disk.victim == nil || excess > most) {
			r.disk.victim, most = each, excess
		}
	}
}

// measure is what the snapshots of a pull have taken. What cannot be looked up counts as nothing: a
// snapshot may just have gone.
func (r *Runtime) measure(ctx context.Context, daemon daemonFacts, a *account) (sum amount) {
	resources, err := r.client.LeasesService().ListResources(ctx, r.disk.leaseOf(a))
	if err != nil {
		return sum
	}
	snapshotter := r.client.SnapshotService(daemon.snapshotter)
	for _, resource := range resources {
		if resource.Type != snapshotResource+daemon.snapshotter {
			continue
		}
		if usage, err := snapshotter.Usage(ctx, resource.ID); err == nil {
			sum = sum.plus(amount{usage.Size, usage.Inodes})
		}
	}
	return sum
}

func (d *disk) leaseOf(a *account) leases.Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	return leases.Lease{ID: a.leaseID}
}

// snapshotResource begins the type of a lease's resources that are snapshots; the snapshotter follows.
const snapshotResource = "snapshots/"

const (
	// undoTimeout bounds the removal of what a pull has left.
	undoTimeout = 30 * time.Second
	// letGoTimeout is how long the daemon may take to end what a cancelled request had begun.
	letGoTimeout  = 5 * time.Second
	letGoInterval = 20 * time.Millisecond
)

// settle undoes a pull that found too little room, and returns what to free for it.
func (r *Runtime) settle(ctx context.Context, a *account, err error) error {
	if ctx.Err() != nil {
		return err
	}
	var short *shortage
	switch {
	case errors.As(err, &short):
	case errors.Is(err, nodeagent.ErrInsufficientDisk):
		r.disk.noteStopped(a)
	case isFull(err):
		r.disk.noteFull(a)
		err = fmt.Errorf("%w: %w", nodeagent.ErrInsufficientDisk, err)
	default:
		return err
	}
	if left := r.undo(ctx, a); left != nil {
		r.Log.Error(left, "Failed to remove what a pull has left", "image", a.image.Ref.String())
	}
	if short != nil {
		return err
	}
	return cmp.Or(r.explainShortage(ctx, a), err)
}

// explainShortage is why a pull that was stopped will not be tried again now; nil if it may be.
func (r *Runtime) explainShortage(ctx context.Context, a *account) error {
	daemon, err := r.daemon(ctx)
	if err != nil {
		return err
	}
	short, err := r.tryReserve(daemon, a, r.disk.correct(a.digest, a.reserved))
	if short != nil {
		return short
	}
	return err
}

// undo removes what a pull has written, and returns when it is gone. The pull has ended, but the daemon
// may still be unpacking a layer for it.
func (r *Runtime) undo(ctx context.Context, a *account) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	r.awaitLetGo(ctx, r.disk.leaseOf(a))
	existing, err := r.listLeases(ctx, a.image.Ref)
	for _, lease := range existing {
		err = errors.Join(err, r.dropLease(ctx, lease))
	}
	return err
}

// dropLease deletes a lease, and what it alone has kept.
func (r *Runtime) dropLease(ctx context.Context, lease leases.Lease) error {
	err := r.client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %q and what it has kept: %w", lease.ID, err)
	}
	return nil
}

// awaitLetGo waits until no layer is being unpacked any more under a lease. Removed meanwhile, a file that
// the daemon still writes would keep its space.
func (r *Runtime) awaitLetGo(ctx context.Context, lease leases.Lease) {
	ctx, cancel := context.WithTimeout(ctx, letGoTimeout)
	defer cancel()
	for {
		resources, err := r.client.LeasesService().ListResources(ctx, lease)
		unpacking := slices.ContainsFunc(resources, func(resource leases.Resource) bool {
			return strings.HasPrefix(resource.Type, snapshotResource) && strings.HasPrefix(resource.ID, snapshots.UnpackKeyPrefix)
		})
		if err != nil || !unpacking || sleep(ctx, letGoInterval) != nil {
			return
		}
	}
}
