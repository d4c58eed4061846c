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

// written is what was last written of a kind, as the API server returned it, for as
// long as the cache does not show it. It lies over the cache, so that a pass never
// decides on less than what the passes before it did.
type written[T client.Object] struct {
	objects map[client.ObjectKey]stamped[T]
}

type stamped[T client.Object] struct {
	object T
	at     time.Time
}

// put remembers object, which the API server returned.
func (w *written[T]) put(object T, now time.Time) {
	if w.objects == nil {
		w.objects = map[client.ObjectKey]stamped[T]{}
	}
	w.objects[client.ObjectKeyFromObject(object)] = stamped[T]{object, now}
}

// refill replaces all that is remembered by what the API server holds.
func (w *written[T]) refill(objects []T, now time.Time) {
	clear(w.objects)
	for _, object := range objects {
		w.put(object, now)
	}
}

// forget forgets an object that was deleted.
func (w *written[T]) forget(uid types.UID) {
	maps.DeleteFunc(w.objects, func(_ client.ObjectKey, mine stamped[T]) bool { return mine.object.GetUID() == uid })
}

// over lays what was written over what the cache holds, and forgets what the cache
// has caught up with. It takes cached over.
func (w *written[T]) over(cached map[client.ObjectKey]T) map[client.ObjectKey]T {
	for key, mine := range w.objects {
		if theirs, ok := cached[key]; ok && !newer(mine.object, theirs) {
			delete(w.objects, key)
			continue
		}
		cached[key] = mine.object
	}
	return cached
}

// overdue tells whether the cache should have shown an object by now. It lags badly,
// or the object was deleted while the watch was interrupted.
func (w *written[T]) overdue(now time.Time) bool {
	due := w.recheck()
	return !due.IsZero() && !due.After(now)
}

// recheck is when the first object is overdue; zero where nothing is waited for.
func (w *written[T]) recheck() time.Time {
	var first time.Time
	for _, mine := range w.objects {
		first = requeue.Earliest(first, mine.at.Add(cacheLag))
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

// departures are the objects whose deletion the watches have shown since the last
// pass: what was written of them is no news any more. Before the first pass, which a
// standby may wait for as long as it lives, nothing has been written and none is kept.
type departures struct {
	mu    sync.Mutex
	begun bool
	uids  []types.UID
}

func (d *departures) add(uid types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun {
		d.uids = append(d.uids, uid)
	}
}

// take returns them, and begins anew.
func (d *departures) take() []types.UID {
	d.mu.Lock()
	defer d.mu.Unlock()
	uids := d.uids
	d.begun, d.uids = true, nil
	return uids
}
