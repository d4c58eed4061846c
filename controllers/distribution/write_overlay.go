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

// cacheLag is how long the cache may take to show a write. It usually takes milliseconds; after
// cacheLag the API server is read.
const cacheLag = 2 * time.Second

// writeOverlay has the objects of a kind that were written, as the API server returned them, until
// the cache shows them. It is applied to what the cache shows, so that a pass always knows what the
// passes before it wrote.
type writeOverlay[T client.Object] struct {
	entries map[client.ObjectKey]overlayEntry[T]
}

type overlayEntry[T client.Object] struct {
	object    T
	writtenAt time.Time
}

// record adds an object that the API server returned.
func (o *writeOverlay[T]) record(object T, now time.Time) {
	if o.entries == nil {
		o.entries = map[client.ObjectKey]overlayEntry[T]{}
	}
	o.entries[client.ObjectKeyFromObject(object)] = overlayEntry[T]{object, now}
}

// reset replaces all entries by what the API server has.
func (o *writeOverlay[T]) reset(objects []T, now time.Time) {
	clear(o.entries)
	for _, object := range objects {
		o.record(object, now)
	}
}

// forget drops an object that was deleted.
func (o *writeOverlay[T]) forget(uid types.UID) {
	maps.DeleteFunc(o.entries, func(_ client.ObjectKey, entry overlayEntry[T]) bool { return entry.object.GetUID() == uid })
}

// applyTo replaces older versions in cached by those of the overlay, and drops the entries that
// cached shows. It changes and returns cached.
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

// overdue reports whether the cache should show an object by now, and does not. Then it lags far
// behind, or the object was deleted while the watch was interrupted.
func (o *writeOverlay[T]) overdue(now time.Time) bool {
	due := o.overdueAt()
	return !due.IsZero() && !due.After(now)
}

// overdueAt is when the first entry is overdue; zero if there is none.
func (o *writeOverlay[T]) overdueAt() time.Time {
	var first time.Time
	for _, entry := range o.entries {
		first = requeue.Earliest(first, entry.writtenAt.Add(cacheLag))
	}
	return first
}

// newer reports whether a is a later version than b, which has the same name. Resource versions of
// one resource are ordered, even if the object was deleted and created in between (KEP-5504). A
// version that is not well formed counts as older.
func newer(a, b client.Object) bool {
	order, err := resourceversion.CompareResourceVersion(a.GetResourceVersion(), b.GetResourceVersion())
	return err == nil && order > 0
}

// deletionLog has the objects whose deletion the watches showed since the last pass. They must leave
// the overlays. Before the first pass the overlays are empty and the log stays so: a standby, which
// may never make a pass, would otherwise fill its memory.
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

// drain returns the objects, and empties the log.
func (d *deletionLog) drain() []types.UID {
	d.mu.Lock()
	defer d.mu.Unlock()
	uids := d.uids
	d.open, d.uids = true, nil
	return uids
}
