// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestAnEditThatChangesNoImageAsksNothing(t *testing.T) {
	for _, tt := range []struct {
		reason string
		edit   func(*Prefetch)
		asked  []string // images that a resolver is asked about
	}{
		{"more failures allowed, say", func(p *Prefetch) { p.Generation++ }, nil},
		{"another selector", func(p *Prefetch) { p.Generation++; p.NodeSelector = map[string]string{"zone": "a"} }, nil},
		{"an image added", func(p *Prefetch) { p.Generation++; p.Images = append(p.Images, "reg/b:1") }, []string{"reg/b:1"}},
		{"a refresh", func(p *Prefetch) { p.Refresh = "2" }, []string{"reg/a:1"}},
		{"the refresh taken off", func(p *Prefetch) { p.Refresh = "" }, nil},
		{"an image taken off and listed again", func(p *Prefetch) { p.Generation += 2; delete(p.Resolved, "reg/a:1") }, []string{"reg/a:1"}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			p := cluster.addPrefetch("web", "reg/a:1")
			p.Refresh = "1"
			cluster.settle(t)
			tt.edit(p)
			var asked []string
			for _, entries := range cluster.next().Sets {
				for _, entry := range entries {
					if entry.Request != "" && entry.Request != cluster.lastRequestIDs(entry.Name) {
						asked = append(asked, entry.Name)
					}
				}
			}
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("asked about %v, want %v", asked, tt.asked)
			}
			if _, known := cluster.next().Prefetches[p.Key].Digests["reg/a:1"]; known != !slices.Contains(tt.asked, "reg/a:1") {
				t.Errorf("the digest is known: %t", known)
			}
		})
	}
}

// lastRequestIDs are those with which the specs asked about an image so far.
func (c *fakeCluster) lastRequestIDs(image string) string {
	for _, m := range c.machines {
		if entry, ok := m.spec[image]; ok && entry.Request != "" {
			return entry.Request
		}
	}
	return ""
}

func TestNodesThatComeLater(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.plan()
	cluster.round()
	if joined := cluster.next().Joined; len(joined) != 0 {
		t.Fatalf("nodes that were there from the beginning joined: %v", joined)
	}
	cluster.addNode("n998")
	if at := cluster.next().Joined.At("n998", "reg/a:1"); !at.Equal(cluster.now) {
		t.Errorf("joined at %v, want %v", at, cluster.now)
	}
	cluster.plan()
	since := cluster.now
	cluster.round()
	p.Generation++
	p.Images = append(p.Images, "reg/b:1")
	cluster.tags["reg/b:1"] = "sha256:b"
	cluster.plan()
	if at := cluster.memory.joined.At("n998", "reg/b:1"); !at.IsZero() {
		t.Error("it joined for an image that was added after it came")
	}
	cluster.memory = Memory{} // the controller is restarted
	for range 20 {
		cluster.plan()
		if entry, ok := cluster.machines["n998"].spec["reg/a:1"]; ok && (entry.JoinedAt == nil || !entry.JoinedAt.Time.Equal(since)) {
			t.Fatalf("its entry says %v, want %v", entry.JoinedAt, since)
		}
		cluster.round()
	}
	cluster.settle(t)
	if joined := cluster.next().Joined; len(joined) != 0 {
		t.Errorf("it has all images, and is joining still: %v", joined)
	}
	if _, ok := cluster.next().Sets["n998"]; ok {
		t.Error("its spec is written again, only to forget that it joined")
	}
	for range 2 {
		delete(cluster.machines["n998"].cached, "reg/a:1") // the kubelet has deleted it
		if at := cluster.next().Joined.At("n998", "reg/a:1"); !at.IsZero() {
			t.Errorf("it joined at %v again, for an image that it lost", at)
		}
		cluster.plan()
	}
}

// A node that takes no Pods for a while, and had none of the images, is waited for when it comes back.
func TestNodesThatComeBackDoNotJoin(t *testing.T) {
	for _, tt := range []struct {
		reason   string
		leave    func(*Node)
		comeBack func(*Node)
		restarts bool // the controller has restarted meanwhile
	}{
		{"not Ready for a moment", func(n *Node) { n.Ready = false }, func(n *Node) { n.Ready = true }, false},
		{"cordoned for a while", func(n *Node) { n.Unschedulable = true }, func(n *Node) { n.Unschedulable = false }, false},
		{"not Ready while the controller restarts", func(n *Node) { n.Ready = false }, func(n *Node) { n.Ready = true }, true},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			p := cluster.addPrefetch("web", "reg/a:1")
			cluster.settle(t)
			for _, name := range []string{"n001", "n002"} {
				tt.leave(&cluster.machines[name].node)
			}
			cluster.addNode("n998", func(n *Node) { n.Ready = false }) // has yet to register
			p.Generation++
			p.Images = append(p.Images, "reg/b:1")
			cluster.tags["reg/b:1"] = "sha256:b"
			cluster.run(t, 2)
			if tt.restarts {
				cluster.restart()
				cluster.run(t, 2)
			}
			for _, name := range []string{"n001", "n002"} {
				tt.comeBack(&cluster.machines[name].node)
			}
			cluster.machines["n998"].node.Ready = true
			joined := cluster.next().Joined
			for _, name := range []string{"n001", "n002"} {
				if at := joined.At(name, "reg/b:1"); !at.IsZero() {
					t.Errorf("%s joined at %v", name, at)
				}
			}
			if joined.At("n998", "reg/b:1").IsZero() {
				t.Error("a new node did not join")
			}
		})
	}
}

func TestUncoveredNodes(t *testing.T) {
	for _, tt := range []struct {
		reason string
		edit   func(*Node)
	}{
		{"no agent is meant to run there", func(n *Node) { n.Uncovered = true }},
		{"its runtime is not supported", func(n *Node) { n.Unsupported = true }},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			tt.edit(&cluster.machines["n001"].node)
			p := cluster.addPrefetch("web", "reg/a:1")
			cluster.settle(t)
			o := cluster.next().Prefetches[p.Key]
			if !slices.Equal(o.Uncovered, []string{"n001"}) || slices.Contains(o.Nodes, "n001") {
				t.Errorf("uncovered %v, desired %v", o.Uncovered, o.Nodes)
			}
			if len(cluster.machines["n001"].spec) > 0 {
				t.Error("it is given something to do")
			}
		})
	}
}

func TestNodeAffinityChoosesNodes(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.machines["n001"].node.Labels = map[string]string{"pool": "gpu"}
	p := cluster.addPrefetch("web", "reg/a:1")
	other := cluster.addPrefetch("other", "reg/a:1")
	opposite := cluster.addPrefetch("opposite", "reg/a:1")
	pool := func(operator corev1.NodeSelectorOperator) *corev1.NodeAffinity {
		return &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: "pool", Operator: operator, Values: []string{"gpu"}},
			}}},
		}}
	}
	p.NodeAffinity, opposite.NodeAffinity = pool(corev1.NodeSelectorOpIn), pool(corev1.NodeSelectorOpNotIn)
	step := cluster.next()
	if got := step.Prefetches[p.Key].Nodes; !slices.Equal(got, []string{"n001"}) {
		t.Errorf("chose %v", got)
	}
	if got := step.Prefetches[other.Key].Nodes; len(got) != 3 {
		t.Errorf("a prefetch that selects otherwise alike shares its nodes: %v", got)
	}
	if got := step.Prefetches[opposite.Key].Nodes; !slices.Equal(got, []string{"n000", "n002"}) {
		t.Errorf("the opposite affinity chose %v", got)
	}
}
