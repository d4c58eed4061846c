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

// addLargePrefetches adds prefetches of 100 images each and returns their keys, the oldest first. A
// later name is an older prefetch.
func (c *fakeCluster) addLargePrefetches(count int, change ...func(*Prefetch)) (keys []string) {
	for i := range count {
		var images []string
		for j := range 100 {
			images = append(images, fmt.Sprintf("registry.example.com/team/app-%02d-%02d@sha256:%064d", i, j, j))
		}
		p := c.addPrefetch(fmt.Sprintf("p%02d", i), images...)
		p.CreatedAt = c.now.Add(time.Duration(-i) * time.Minute)
		for _, f := range change {
			f(p)
		}
		keys = append([]string{p.Key}, keys...)
	}
	return keys
}

// fullFor are the nodes whose sets have no room for a prefetch.
func fullFor(step Step, key string) string { return strings.Join(step.Prefetches[key].Full, " ") }

func TestNodeTakesTheOldestPrefetchesThatFit(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	keys := cluster.addLargePrefetches(51)
	small := cluster.addPrefetch("small", "reg/small@sha256:s")
	small.CreatedAt = cluster.now
	step, _ := cluster.plan()

	served := slices.IndexFunc(keys, func(key string) bool { return fullFor(step, key) != "" })
	if served < 5 || served > 6 {
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
	cluster.settle(t)
	for name, m := range cluster.machines {
		if len(m.content) != 100*served+1 {
			t.Errorf("%s has %d images", name, len(m.content))
		}
	}

	before := cluster.machines["n000"].generation
	delete(cluster.prefetches, keys[0])
	step, _ = cluster.plan()
	if got := fullFor(step, keys[served]); got != "" {
		t.Errorf("the next one has no room on %q though one is gone", got)
	}
	cluster.settle(t)
	if _, ok := cluster.machines["n000"].content[cluster.prefetches[keys[1]].Images[0]]; !ok || cluster.machines["n000"].generation == before {
		t.Error("the others were disturbed, or nothing came")
	}
}

// addYoungestPrefetch adds a prefetch with 100 images of its own, younger than all others.
func (c *fakeCluster) addYoungestPrefetch() *Prefetch {
	var images []string
	for i := range 100 {
		images = append(images, fmt.Sprintf("registry.example.com/young/app-%02d@sha256:%064d", i, i))
	}
	p := c.addPrefetch("young", images...)
	p.CreatedAt = c.now.Add(time.Minute)
	return p
}

func TestCapacityIsCountedByNode(t *testing.T) {
	for _, c := range []struct {
		reason  string
		arrange func(cluster *fakeCluster) (prefetchKey string)
		want    string
	}{
		{"prefetches of other nodes take no room", func(cluster *fakeCluster) string {
			cluster.addLargePrefetches(10, func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} })
			return cluster.addPrefetch("young", "reg/a@sha256:a").Key
		}, ""},
		{"only the full node is left out", func(cluster *fakeCluster) string {
			cluster.addLargePrefetches(10, func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} })
			return cluster.addYoungestPrefetch().Key
		}, "n000"},
		{"an image that several prefetches want takes room once", func(cluster *fakeCluster) string {
			images := cluster.prefetches[cluster.addLargePrefetches(1)[0]].Images
			for i := range 20 {
				cluster.addPrefetch(fmt.Sprintf("again%d", i), images...).CreatedAt = cluster.now.Add(-time.Hour)
			}
			p := cluster.addPrefetch("young", images...)
			p.CreatedAt = cluster.now
			return p.Key
		}, ""},
		{"replicas go where there is room", func(cluster *fakeCluster) string {
			cluster.addLargePrefetches(10, func(p *Prefetch) { p.NodeSelector = map[string]string{"disk": "ssd"} })
			p := cluster.addYoungestPrefetch()
			p.Replicas = new(int32(2))
			return p.Key
		}, ""},
		{"replicas that find none say so", func(cluster *fakeCluster) string {
			cluster.addLargePrefetches(10)
			p := cluster.addYoungestPrefetch()
			p.Replicas = new(int32(2))
			return p.Key
		}, "n000 n001"},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			cluster.machines["n000"].node.Labels = map[string]string{"disk": "ssd"}
			prefetchKey := c.arrange(cluster)
			step, _ := cluster.plan()
			if got := fullFor(step, prefetchKey); got != c.want {
				t.Errorf("no room on %q, want %q", got, c.want)
			}
			if o := step.Prefetches[prefetchKey]; o.MissingReplicas != 0 {
				t.Errorf("%d replicas are missing", o.MissingReplicas)
			}
		})
	}
}
