// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// chosenNodes are the nodes that a prefetch wants once the cluster has settled.
func (c *fakeCluster) chosenNodes(t *testing.T, key string) []string {
	t.Helper()
	c.settle(t)
	c.checkServed(t)
	return c.next().Prefetches[key].Nodes
}

func inZone(zone string) func(*Node) { return func(n *Node) { n.Zone = zone } }

// threeZones has four nodes in each of three zones.
func threeZones(replicas int32) (*fakeCluster, *Prefetch) {
	cluster := newFakeCluster()
	for _, zone := range []string{"a", "b", "c"} {
		for i := range 4 {
			cluster.addNode(fmt.Sprintf("%s%d", zone, i), inZone(zone))
		}
	}
	p := cluster.addPrefetch("web", "reg/a:1", "reg/b:1")
	p.Replicas = &replicas
	return cluster, p
}

func TestReplicasAreSpreadOverZones(t *testing.T) {
	for _, replicas := range []int32{1, 2, 3, 4, 5, 6, 9, 11, 12} {
		cluster, p := threeZones(replicas)
		nodes := cluster.chosenNodes(t, p.Key)
		if len(nodes) != int(replicas) || !isSpread(nodes) {
			t.Errorf("%d replicas became %v", replicas, nodes)
		}
	}
}

// isSpread reports whether no zone of threeZones has two nodes more than another.
func isSpread(nodes []string) bool {
	zones := map[byte]int{'a': 0, 'b': 0, 'c': 0}
	for _, name := range nodes {
		zones[name[0]]++
	}
	counts := slices.Sorted(maps.Values(zones))
	return counts[2]-counts[0] <= 1
}

func TestReplicasStay(t *testing.T) {
	for _, c := range []struct {
		reason string
		happen func(cluster *fakeCluster, p *Prefetch, before []string)
	}{
		{"when nodes join", func(cluster *fakeCluster, _ *Prefetch, _ []string) {
			for i := range 20 {
				cluster.addNode(fmt.Sprintf("a%02d", i), inZone("d"))
			}
		}},
		{"when a node that is none of them goes", func(cluster *fakeCluster, _ *Prefetch, before []string) {
			for name := range cluster.machines {
				if !slices.Contains(before, name) {
					delete(cluster.machines, name)
					return
				}
			}
		}},
		{"when the controller restarts", func(cluster *fakeCluster, _ *Prefetch, _ []string) { cluster.restart() }},
		{"when a tag is refreshed", func(cluster *fakeCluster, p *Prefetch, _ []string) {
			p.Refresh = "now"
			cluster.tags["reg/a:1"] = "sha256:moved"
		}},
		{"when an image is taken off the list", func(_ *fakeCluster, p *Prefetch, _ []string) { p.Images = p.Images[:1] }},
		{"when an image is added", func(cluster *fakeCluster, p *Prefetch, _ []string) {
			cluster.tags["reg/c:1"] = "sha256:c"
			p.Images = append(slices.Clone(p.Images), "reg/c:1")
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster, p := threeZones(5)
			before := cluster.chosenNodes(t, p.Key)
			c.happen(cluster, p, before)
			if after := cluster.chosenNodes(t, p.Key); !slices.Equal(before, after) {
				t.Errorf("%v became %v", before, after)
			}
		})
	}
}

func TestReplicasAreRepaired(t *testing.T) {
	for _, c := range []struct {
		reason string
		happen func(cluster *fakeCluster, name string)
	}{
		{"when one is gone", func(cluster *fakeCluster, name string) { delete(cluster.machines, name) }},
		{"when one is not Ready", func(cluster *fakeCluster, name string) { cluster.machines[name].node.Ready = false }},
		{"when one is cordoned", func(cluster *fakeCluster, name string) { cluster.machines[name].node.Unschedulable = true }},
		{"when the agent of one is dead", func(cluster *fakeCluster, name string) {
			cluster.machines[name].dead = true
			cluster.prefetches["team/web"].RetryLimit++ // something that it would have to acknowledge
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			for lost := range 3 { // each zone in turn
				cluster, p := threeZones(3)
				before := cluster.chosenNodes(t, p.Key)
				c.happen(cluster, before[lost])
				after := cluster.chosenNodes(t, p.Key)
				others := slices.Delete(slices.Clone(before), lost, lost+1)
				if len(after) != 3 || slices.Contains(after, before[lost]) || !slices.Contains(after, others[0]) || !slices.Contains(after, others[1]) {
					t.Errorf("%v without %s became %v", before, before[lost], after)
				}
				if !isSpread(after) {
					t.Errorf("%v without %s became %v, which leaves a zone empty", before, before[lost], after)
				}
			}
		})
	}
}

func TestReplicaThatIsNoLongerNeededIsLetGo(t *testing.T) {
	cluster, p := threeZones(4)
	cluster.chosenNodes(t, p.Key)
	two := int32(2)
	p.Replicas = &two
	after := cluster.chosenNodes(t, p.Key)
	for name, m := range cluster.machines {
		if len(m.spec) > 0 != slices.Contains(after, name) {
			t.Errorf("%v are chosen, and %s is asked for %d images", after, name, len(m.spec))
		}
	}
}

func TestMissingReplicas(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	five := int32(5)
	cluster.addPrefetch("web", "reg/a:1").Replicas = &five
	cluster.settle(t)
	if o := cluster.next().Prefetches["team/web"]; len(o.Nodes) != 2 || o.MissingReplicas != 3 {
		t.Errorf("got %+v", o)
	}
}
