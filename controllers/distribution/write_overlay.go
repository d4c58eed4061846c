// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/internal/requeue"
)

// cacheLag is how long the cache may take to show a write before the API server
// itself is asked. It takes milliseconds as a rule.
const cacheLag = 2 * time.Second

// writeOverlay is what was last written of a kind, as the API server returned it, for as
// long as the cache does not show it. It lies over the cache, so that a pass never
// decides on less than what the passes before it did.
type writeOverlay[T client.Object] struct {
	entries map[client.ObjectKey]overlayEntry[T]
}

type overlayEntry[T client.Object] struct {
	object    T
	writtenAt time.Time
}

// record remembers object, which the API server returned.
func (o *writeOverlay[T]) record(object T, now time.Time) {
	if o.entries == nil {
		o.entries = map[client.ObjectKey]overlayEntry[T]{}
	}
	o.entries[client.ObjectKeyFromObject(object)] = overlayEntry[T]{object, now}
}

// reset replaces all that is remembered by what the API server holds.
func (o *writeOverlay[T]) reset(objects []T, now time.Time) {
	clear(o.entries)
	for _, object := range objects {
		o.record(object, now)
	}
}

// forget forgets an object that was deleted.
func (o *writeOverlay[T]) forget(uid types.UID) {
	maps.DeleteFunc(o.entries, func(_ client.ObjectKey, entry overlayEntry[T]) bool { return entry.object.GetUID() == uid })
}

// applyTo lays what was written over what the cache holds, and forgets what the cache
// has caught up with. It takes cached over.
func (o *writeOverlay[T]) applyTo(cached map[client.ObjectKey]T) map[client.ObjectKey]T {
	for key, entry := range o.entries {
		if shown, ok := cached[key]; ok && !newer(entry.object, shown) {
			delete(o.entries, key)
			continue
		}
		cached[key] = entry.object
	}
	return cached
}

// overdue tells whether the cache should have shown an object by now. It lags badly,
// or the object was deleted while the watch was interrupted.
func (o *writeOverlay[T]) overdue(now time.Time) bool {
	due := o.overdueAt()
	return !due.IsZero() && !due.After(now)
}

// overdueAt is when the first object is overdue; zero where nothing is waited for.
func (o *writeOverlay[T]) overdueAt() time.Time {
	var first time.Time
	for _, entry := range o.entries {
		first = requeue.Earliest(first, entry.writtenAt.Add(cacheLag))
	}
	return first
}

// newer tells whether a is a later version than b of what bears their name. Resource
// versions of one resource are ordered, also across deletion and creation
// (KEP-5504); one that is not well formed is taken for the cache's.
func newer(a, b client.Object) bool {
	order, err := resourceversion.CompareResourceVersion(a.GetResourceVersion(), b.GetResourceVersion())
	return err == nil && order > 0
}

// deletionLog are the objects whose deletion the watches have shown since the last
// pass: what was written of them is no news any more. Before the first pass, which a
// standby may wait for as long as it lives, nothing has been written and none is kept.
type deletionLog struct {
	mu   sync.Mutex
	open bool
	uids []types.UID
}

func (d *deletionLog) add(uid types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open {
		d.uids = append(d.uids, uid)
	}
}

// drain returns them, and begins anew.
func (d *deletionLog) drain() []types.UID {
	d.mu.Lock()
	defer d.mu.Unlock()
	uids := d.uids
	d.open, d.uids = true, nil
	return uids
}
