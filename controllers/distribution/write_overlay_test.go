// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func set(name, uid, version string) *v1alpha1.NodeImageSet {
	return &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), ResourceVersion: version}}
}

func TestTheOverlayReplacesOlderVersionsInTheCache(t *testing.T) {
	tests := []struct {
		because          string
		recorded, cached *v1alpha1.NodeImageSet
		want             string // resource version
		kept             bool
	}{
		{"the cache does not show the object yet", set("a", "1", "10"), nil, "10", true},
		{"the cache has an older version", set("a", "1", "10"), set("a", "1", "9"), "10", true},
		{"versions are compared as numbers", set("a", "1", "100"), set("a", "1", "99"), "100", true},
		{"the cache has caught up", set("a", "1", "10"), set("a", "1", "10"), "10", false},
		{"somebody has written since", set("a", "1", "10"), set("a", "1", "11"), "11", false},
		{"the cache still has an object that was deleted and made again", set("a", "2", "10"), set("a", "1", "9"), "10", true},
		{"the object was deleted and made again since", set("a", "1", "10"), set("a", "2", "12"), "12", false},
		{"nothing was written", nil, set("a", "1", "9"), "9", false},
		{"a version that is not a number counts as older", set("a", "1", "x"), set("a", "1", "9"), "9", false},
	}
	for _, test := range tests {
		t.Run(test.because, func(t *testing.T) {
			var overlay writeOverlay[*v1alpha1.NodeImageSet]
			if test.recorded != nil {
				overlay.record(test.recorded, noon)
			}
			cached := map[client.ObjectKey]*v1alpha1.NodeImageSet{}
			if test.cached != nil {
				cached[client.ObjectKey{Name: "a"}] = test.cached
			}
			if got := overlay.applyTo(cached)[client.ObjectKey{Name: "a"}].ResourceVersion; got != test.want {
				t.Errorf("got version %s, want %s", got, test.want)
			}
			if kept := len(overlay.entries) == 1; kept != test.kept {
				t.Errorf("the entry is kept: %v, want %v", kept, test.kept)
			}
		})
	}
}

func TestEntriesThatTheCacheDoesNotShowAreOverdue(t *testing.T) {
	var overlay writeOverlay[*v1alpha1.NodeImageSet]
	if overlay.overdue(noon) || !overlay.overdueAt().IsZero() {
		t.Error("an empty overlay is overdue")
	}
	overlay.record(set("a", "1", "10"), noon)
	overlay.record(set("b", "2", "11"), noon.Add(cacheLag/2))
	if overlay.overdue(noon.Add(cacheLag - 1)) {
		t.Error("too early")
	}
	if due := noon.Add(cacheLag); !overlay.overdue(due) || !overlay.overdueAt().Equal(due) {
		t.Error("the oldest entry does not decide when it is overdue")
	}
	// b was deleted while the watch was interrupted: the API server does not have it.
	overlay.reset([]*v1alpha1.NodeImageSet{set("a", "1", "12")}, noon.Add(cacheLag))
	seen := overlay.applyTo(map[client.ObjectKey]*v1alpha1.NodeImageSet{})
	if len(seen) != 1 || seen[client.ObjectKey{Name: "a"}].ResourceVersion != "12" {
		t.Errorf("got %v", seen)
	}
}

func TestDeletedObjectsLeaveTheOverlay(t *testing.T) {
	var overlay writeOverlay[*v1alpha1.NodeImageSet]
	var deletions deletionLog
	overlay.record(set("a", "1", "10"), noon)
	overlay.record(set("b", "2", "11"), noon)
	deletions.add("2")
	if early := deletions.drain(); len(early) != 0 {
		t.Errorf("a standby logged %v", early)
	}
	deletions.add("1")
	for _, uid := range deletions.drain() {
		overlay.forget(uid)
	}
	seen := overlay.applyTo(map[client.ObjectKey]*v1alpha1.NodeImageSet{})
	if _, ok := seen[client.ObjectKey{Name: "b"}]; !ok || len(seen) != 1 {
		t.Errorf("got %v, want b alone", seen)
	}
	if second := deletions.drain(); len(second) != 0 {
		t.Errorf("%v was drained twice", second)
	}
}
