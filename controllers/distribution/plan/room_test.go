// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// pile adds prefetches of 100 images each, the later the name the older, and returns
// their keys from the oldest on.
func (w *world) pile(count int, change ...func(*Prefetch)) (keys []string) {
	for i := range count {
		var images []string
		for j := range 100 {
			images = append(images, fmt.Sprintf("registry.example.com/team/app-%02d-%02d@sha256:%064d", i, j, j))
		}
		p := w.wish(fmt.Sprintf("p%02d", i), images...)
		p.CreatedAt = w.now.Add(time.Duration(-i) * time.Minute)
		for _, f := range change {
			f(p)
		}
		keys = append([]string{p.Key}, keys...)
	}
	return keys
}

// fullFor are the nodes that have no room for a prefetch.
func fullFor(step Step, key string) string { return strings.Join(step.Prefetches[key].Full, " ") }

func TestNodeTakesTheOldestPrefetchesThatFit(t *testing.T) {
	w := newWorld()
	w.joinMany(2)
	keys := w.pile(51)
	small := w.wish("small", "reg/small@sha256:s")
	small.CreatedAt = w.now
	step, _ := w.plan()

	served := slices.IndexFunc(keys, func(key string) bool { return fullFor(step, key) != "" })
	if served < 4 || served > 5 {
		t.Fatalf("%d prefetches of 100 images fit", served)
	}
	for i, key := range keys {
		want := ""
		if i >= served {
			want = "n000 n001"
		}
		if got := fullFor(step, key); got != want {
			t.Errorf("no room for %s on %q, want %q", key, got, want)
		}
		if got := step.Prefetches[key].Nodes; len(got) != 2 {
			t.Errorf("%s wants %v", key, got)
		}
	}
	if got := fullFor(step, small.Key); got != "" {
		t.Errorf("one that would fit has no room on %q", got)
	}
	w.settle(t)
	for name, m := range w.machines {
		if len(m.content) != 100*served+1 {
			t.Errorf("%s holds %d images", name, len(m.content))
		}
	}

	before := w.machines["n000"].generation
	delete(w.wishes, keys[0])
	step, _ = w.plan()
	if got := fullFor(step, keys[served]); got != "" {
		t.Errorf("the next one has no room on %q though one is gone", got)
	}
	w.settle(t)
	if _, ok := w.machines["n000"].content[w.wishes[keys[1]].Images[0]]; !ok || w.machines["n000"].generation == before {
		t.Error("the others were disturbed, or nothing came")
	}
}

// young is the youngest prefetch, with 100 images of its own.
func (w *world) young() *Prefetch {
	var images []string
	for i := range 100 {
		images = append(images, fmt.Sprintf("registry.example.com/young/app-%02d@sha256:%064d", i, i))
	}
	p := w.wish("young", images...)
	p.CreatedAt = w.now.Add(time.Minute)
	return p
}

func TestRoomIsCountedByNode(t *testing.T) {
	for _, c := range []struct {
		reason  string
		arrange func(w *world) (key string)
		want    string
	}{
		{"what others want elsewhere takes no room", func(w *world) string {
			w.pile(10, func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} })
			return w.wish("young", "reg/a@sha256:a").Key
		}, ""},
		{"only a node that is full is left out", func(w *world) string {
			w.pile(10, func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} })
			return w.young().Key
		}, "n000"},
		{"what is wanted twice is there once", func(w *world) string {
			images := w.wishes[w.pile(1)[0]].Images
			for i := range 20 {
				w.wish(fmt.Sprintf("again%d", i), images...).CreatedAt = w.now.Add(-time.Hour)
			}
			p := w.wish("young", images...)
			p.CreatedAt = w.now
			return p.Key
		}, ""},
		{"replicas go where there is room", func(w *world) string {
			w.pile(10, func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} })
			p := w.young()
			p.Replicas = new(int32(2))
			return p.Key
		}, ""},
		{"replicas that find none say so", func(w *world) string {
			w.pile(10)
			p := w.young()
			p.Replicas = new(int32(2))
			return p.Key
		}, "n000 n001"},
	} {
		t.Run(c.reason, func(t *testing.T) {
			w := newWorld()
			w.joinMany(3)
			w.machines["n000"].node.Labels = map[string]string{"disk": "ssd"}
			key := c.arrange(w)
			step, _ := w.plan()
			if got := fullFor(step, key); got != c.want {
				t.Errorf("no room on %q, want %q", got, c.want)
			}
			if o := step.Prefetches[key]; o.MissingReplicas != 0 {
				t.Errorf("%d replicas are missing", o.MissingReplicas)
			}
		})
	}
}
