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

func TestWhatWasWrittenLiesOverTheCache(t *testing.T) {
	tests := []struct {
		because         string
		written, cached *v1alpha1.NodeImageSet
		want            string // resource version
		kept            bool
	}{
		{"the cache does not know of the object yet", set("a", "1", "10"), nil, "10", true},
		{"the cache has an older version", set("a", "1", "10"), set("a", "1", "9"), "10", true},
		{"versions are numbers, not words", set("a", "1", "100"), set("a", "1", "99"), "100", true},
		{"the cache has caught up", set("a", "1", "10"), set("a", "1", "10"), "10", false},
		{"somebody has written since", set("a", "1", "10"), set("a", "1", "11"), "11", false},
		{"the cache still has an object that was deleted and made again", set("a", "2", "10"), set("a", "1", "9"), "10", true},
		{"the object was deleted and made again since", set("a", "1", "10"), set("a", "2", "12"), "12", false},
		{"nothing was written", nil, set("a", "1", "9"), "9", false},
		{"a version that is no number is not compared", set("a", "1", "x"), set("a", "1", "9"), "9", false},
	}
	for _, test := range tests {
		t.Run(test.because, func(t *testing.T) {
			var w writeOverlay[*v1alpha1.NodeImageSet]
			if test.written != nil {
				w.record(test.written, noon)
			}
			cached := map[client.ObjectKey]*v1alpha1.NodeImageSet{}
			if test.cached != nil {
				cached[client.ObjectKey{Name: "a"}] = test.cached
			}
			if got := w.applyTo(cached)[client.ObjectKey{Name: "a"}].ResourceVersion; got != test.want {
				t.Errorf("version %s is seen, want %s", got, test.want)
			}
			if kept := len(w.entries) == 1; kept != test.kept {
				t.Errorf("the write is remembered: %v, want %v", kept, test.kept)
			}
		})
	}
}

func TestTheAPIServerIsAskedWhenTheCacheLags(t *testing.T) {
	var w writeOverlay[*v1alpha1.NodeImageSet]
	if w.overdue(noon) || !w.overdueAt().IsZero() {
		t.Error("nothing was written, and something is waited for")
	}
	w.record(set("a", "1", "10"), noon)
	w.record(set("b", "2", "11"), noon.Add(cacheLag/2))
	if w.overdue(noon.Add(cacheLag - 1)) {
		t.Error("too early")
	}
	if due := noon.Add(cacheLag); !w.overdue(due) || !w.overdueAt().Equal(due) {
		t.Error("the first write decides when to look again")
	}
	// b was deleted while nobody watched: the API server does not know it.
	w.reset([]*v1alpha1.NodeImageSet{set("a", "1", "12")}, noon.Add(cacheLag))
	seen := w.applyTo(map[client.ObjectKey]*v1alpha1.NodeImageSet{})
	if len(seen) != 1 || seen[client.ObjectKey{Name: "a"}].ResourceVersion != "12" {
		t.Errorf("got %v", seen)
	}
}

func TestWhatWasDeletedIsNoNews(t *testing.T) {
	var w writeOverlay[*v1alpha1.NodeImageSet]
	var gone deletionLog
	w.record(set("a", "1", "10"), noon)
	w.record(set("b", "2", "11"), noon)
	gone.add("2")
	if early := gone.drain(); len(early) != 0 {
		t.Errorf("a standby kept %v", early)
	}
	gone.add("1")
	for _, uid := range gone.drain() {
		w.forget(uid)
	}
	seen := w.applyTo(map[client.ObjectKey]*v1alpha1.NodeImageSet{})
	if _, ok := seen[client.ObjectKey{Name: "b"}]; !ok || len(seen) != 1 {
		t.Errorf("got %v, want b alone", seen)
	}
	if again := gone.drain(); len(again) != 0 {
		t.Errorf("%v was taken twice", again)
	}
}
