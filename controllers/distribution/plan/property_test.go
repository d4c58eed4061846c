// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// TestAnyHistory drives a small cluster through anything that can happen to it, in any order, and
// asserts the invariants at every plan and the outcome at the end.
func TestAnyHistory(t *testing.T) { rapid.Check(t, history) }

// TestUpstreamLimitIsKept asserts that not only the specs keep the limit of the upstream, but also
// what nodes do, however late plan and agents see each other's changes, as long as no timeout
// passes.
func TestUpstreamLimitIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := newFakeCluster()
		cluster.limits.SeedTimeout, cluster.limits.AgentTimeout = 1000*time.Hour, 1000*time.Hour
		cluster.checkPulls = true
		cluster.addNodes(rapid.IntRange(2, 4).Draw(t, "nodes"))
		p := cluster.addPrefetch("web", "reg/a:1")
		refreshed := 0
		t.Repeat(map[string]func(*rapid.T){
			"":             func(t *rapid.T) { cluster.check(t) },
			"uneven round": func(t *rapid.T) { cluster.partialRound(t) },
			"more rounds":  func(t *rapid.T) { cluster.partialRound(t) },
			"flap": func(t *rapid.T) {
				m := cluster.machines[rapid.SampledFrom(slices.Sorted(maps.Keys(cluster.machines))).Draw(t, "node")]
				m.node.Ready = !m.node.Ready
			},
			"pressure": func(t *rapid.T) {
				m := cluster.machines[rapid.SampledFrom(slices.Sorted(maps.Keys(cluster.machines))).Draw(t, "node")]
				m.node.DiskPressure = !m.node.DiskPressure
			},
			"refresh": func(*rapid.T) { refreshed++; p.Refresh = fmt.Sprint(refreshed) },
			"move the tag": func(*rapid.T) {
				refreshed++
				cluster.tags["reg/a:1"] = fmt.Sprintf("sha256:a-%d", refreshed)
			},
			"delete":  func(*rapid.T) { delete(cluster.prefetches, p.Key) },
			"restore": func(*rapid.T) { cluster.prefetches[p.Key] = p },
			"another": func(*rapid.T) { cluster.addPrefetch("other", "reg/a:1") },
			"restart": func(*rapid.T) { cluster.restart() },
		})
	})
}

// TestOneNodeFetchesForAll asserts that prefetches which come while an image is being pulled send
// no second node to the upstream for it.
func TestOneNodeFetchesForAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := newFakeCluster()
		cluster.limits.SeedTimeout, cluster.limits.AgentTimeout = 1000*time.Hour, 1000*time.Hour
		cluster.addNodes(3)
		come := func() { cluster.addPrefetch(fmt.Sprint(len(cluster.prefetches)), "reg/a:1").RetryLimit = 1000 }
		come()
		usedUpstream := make(map[string]bool)
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				for name, m := range cluster.machines {
					if m.status["reg/a:1"].Source == v1alpha1.SourceUpstream {
						usedUpstream[name] = true
					}
				}
				if len(usedUpstream) > 1 {
					t.Fatalf("%v pulled it from the upstream\n%s", keys(usedUpstream), cluster)
				}
			},
			"plan":         func(*rapid.T) { cluster.plan() },
			"uneven round": func(t *rapid.T) { cluster.partialRound(t) },
			"more rounds":  func(t *rapid.T) { cluster.partialRound(t) },
			"come":         func(*rapid.T) { come() },
		})
	})
}

// partialRound plans, and has each agent do only a part of its turn.
func (c *fakeCluster) partialRound(t *rapid.T) {
	c.plan()
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		m := c.machines[name]
		switch rapid.SampledFrom([]string{"all", "deaf", "mute", "busy"}).Draw(t, name) {
		case "all":
			m.deliver()
			c.work(m)
			c.report(m)
		case "deaf": // it works on the spec that it knows
			c.work(m)
			c.report(m)
		case "mute": // the controller does not see it
			m.deliver()
			c.work(m)
		}
	}
}

// FuzzAnyHistory lets the fuzzer look for histories that reach new code.
func FuzzAnyHistory(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(history))
}

func history(t *rapid.T) {
	cluster := newFakeCluster()
	cluster.limits.UpstreamPullers = rapid.IntRange(1, 2).Draw(t, "upstreamPullers")
	cluster.limits.Fanout = rapid.IntRange(1, 3).Draw(t, "fanout")
	cluster.limits.MaxConcurrentPulls = rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "maxConcurrentPulls")
	cluster.limits.FollowSeed = rapid.Bool().Draw(t, "followSeed")
	const local = "local/l:1"
	images := []string{"reg/a:1", "reg/b:1", "reg/c@sha256:c", "reg/d:1", local}
	for _, image := range images {
		cluster.tags[image] = "sha256:" + image + "-0"
	}
	cluster.tags[local] = ""
	joined, tagged, refreshed := 0, 0, 0
	join := func(t *rapid.T) {
		m := cluster.addNode(fmt.Sprintf("n%02d", joined), func(n *Node) {
			n.Platform = rapid.SampledFrom([]string{"linux/amd64", "linux/amd64", "linux/arm64", "windows/amd64"}).Draw(t, "platform")
			n.Zone = rapid.SampledFrom([]string{"", "east", "west"}).Draw(t, "zone")
			n.Labels = map[string]string{"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")}
		})
		m.slots = rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "slots")
		m.missTurns = rapid.SampledFrom([]int{0, 5, 60}).Draw(t, "asks")
		joined++
	}
	someMachine := func(t *rapid.T) *machine {
		if len(cluster.machines) == 0 {
			join(t)
		}
		return cluster.machines[rapid.SampledFrom(slices.Sorted(maps.Keys(cluster.machines))).Draw(t, "node")]
	}
	describe := func(t *rapid.T, p *Prefetch) {
		p.Images = rapid.SliceOfNDistinct(rapid.SampledFrom(images), 1, len(images), rapid.ID[string]).Draw(t, "images")
		p.NodeSelector, p.Tolerations, p.Replicas = nil, nil, nil
		if disk := rapid.SampledFrom([]string{"", "ssd", "hdd"}).Draw(t, "disk"); disk != "" {
			p.NodeSelector = map[string]string{"disk": disk}
		}
		if rapid.Bool().Draw(t, "tolerates") {
			p.Tolerations = []corev1.Toleration{{Key: "team", Operator: corev1.TolerationOpExists}}
		}
		if replicas := rapid.Int32Range(0, 4).Draw(t, "replicas"); replicas > 0 {
			p.Replicas = &replicas
		}
		p.Retention = rapid.SampledFrom([]v1alpha1.RetentionPolicy{v1alpha1.RetentionPinned, v1alpha1.RetentionBestEffort}).Draw(t, "retention")
		p.RetryLimit = rapid.Int32Range(0, 2).Draw(t, "retries")
		p.NodeLocal = nil
		if rapid.Bool().Draw(t, "local") {
			p.NodeLocal = []string{local}
		}
		p.PullSecrets = nil
		if rapid.Bool().Draw(t, "secret") {
			p.PullSecrets = []v1alpha1.PullSecretSource{{Namespace: p.Namespace, Name: "s-" + p.UID}}
		}
	}
	generation := 1
	edit := func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "prefetch")
		p := cluster.prefetches["team/"+name]
		if p == nil {
			p = cluster.addPrefetch(name)
		}
		generation++
		p.Generation = int64(generation)
		describe(t, p)
	}
	for range rapid.IntRange(1, 8).Draw(t, "nodes") {
		join(t)
	}
	edit(t)

	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) { cluster.check(t) },
		"plan": func(t *rapid.T) {
			checkDeterministic(t, cluster)
			cluster.plan()
		},
		"deliver":         func(t *rapid.T) { someMachine(t).deliver() },
		"work":            func(t *rapid.T) { cluster.work(someMachine(t)) },
		"report":          func(t *rapid.T) { cluster.report(someMachine(t)) },
		"round":           func(*rapid.T) { cluster.plan(); cluster.round() },
		"join":            join,
		"leave":           func(t *rapid.T) { delete(cluster.machines, someMachine(t).node.Name) },
		"kill the agent":  func(t *rapid.T) { someMachine(t).dead = true },
		"start the agent": func(t *rapid.T) { someMachine(t).dead = false },
		"flap":            func(t *rapid.T) { m := someMachine(t); m.node.Ready = !m.node.Ready },
		"cordon":          func(t *rapid.T) { m := someMachine(t); m.node.Unschedulable = !m.node.Unschedulable },
		"pressure":        func(t *rapid.T) { m := someMachine(t); m.node.DiskPressure = !m.node.DiskPressure },
		"taint": func(t *rapid.T) {
			m := someMachine(t)
			m.node.Taints = rapid.SampledFrom([][]corev1.Taint{nil,
				{{Key: "team", Value: "x", Effect: corev1.TaintEffectNoSchedule}},
				{{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule}}}).Draw(t, "taints")
		},
		"relabel": func(t *rapid.T) {
			someMachine(t).node.Labels = map[string]string{"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")}
		},
		"hint": func(t *rapid.T) {
			someMachine(t).node.KubeletImages = []string{rapid.SampledFrom(images).Draw(t, "hint")}
		},
		"go offline": func(t *rapid.T) { m := someMachine(t); m.offline = !m.offline },
		"hang": func(t *rapid.T) {
			m := someMachine(t)
			m.hung, m.retryTurns = !m.hung, rapid.SampledFrom([]int{0, 1, 20}).Draw(t, "patience")
		},
		"lose the runtime": func(t *rapid.T) {
			m := someMachine(t)
			m.node.RuntimeDown = !m.node.RuntimeDown
			m.hung = m.node.RuntimeDown
		},
		"cut off": func(t *rapid.T) { m := someMachine(t); m.cutOff = !m.cutOff },
		"fill":    func(t *rapid.T) { m := someMachine(t); m.diskFull = !m.diskFull },
		"lose":    func(t *rapid.T) { clear(someMachine(t).content) },
		"edit":    edit,
		"delete": func(t *rapid.T) {
			delete(cluster.prefetches, "team/"+rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "prefetch"))
		},
		"move the tag": func(t *rapid.T) {
			tagged++
			image := rapid.SampledFrom(images).Draw(t, "image")
			cluster.tags[image] = fmt.Sprintf("sha256:%s-%d", image, tagged)
		},
		"import": func(t *rapid.T) {
			someMachine(t).content[local] = rapid.SampledFrom([]string{"sha256:l-1", "sha256:l-2"}).Draw(t, "imported")
		},
		"import everywhere": func(t *rapid.T) {
			digest := rapid.SampledFrom([]string{"sha256:l-1", "sha256:l-2"}).Draw(t, "imported")
			for _, m := range cluster.machines {
				m.content[local] = digest
			}
		},
		"refresh": func(t *rapid.T) {
			if p := cluster.prefetches["team/"+rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "prefetch")]; p != nil {
				refreshed++
				p.Refresh = fmt.Sprint(refreshed)
			}
		},
		"drop the tag": func(t *rapid.T) { cluster.tags[rapid.SampledFrom(images).Draw(t, "image")] = "" },
		"registry":     func(*rapid.T) { cluster.registryDown = !cluster.registryDown },
		"mirror":       func(*rapid.T) { cluster.mirrorDown = !cluster.mirrorDown },
		"wait": func(t *rapid.T) {
			cluster.now = cluster.now.Add(time.Duration(rapid.IntRange(1, 300).Draw(t, "s")) * time.Second)
		},
		"restart yourself": func(*rapid.T) { cluster.restart() },
		"rest":             func(t *rapid.T) { cluster.planUntilStable(t) },
	})

	// Every node that can be served is served in the end, also without the mirror.
	cluster.registryDown = false
	for _, image := range images {
		if cluster.tags[image] == "" {
			cluster.tags[image] = "sha256:" + image + "-found"
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cluster.machines)) {
		cluster.machines[name].recover()
		if cluster.machines[name].dead {
			delete(cluster.machines, name)
		}
	}
	cluster.importEverywhere(local)
	cluster.settle(t)
	cluster.checkServed(t)
}

// recover repairs all that is wrong with a machine, except that the mirror does not serve it. Its
// agent tries again what has failed.
func (m *machine) recover() {
	m.offline, m.hung, m.diskFull = false, false, false
	m.node.DiskPressure, m.node.RuntimeDown = false, false
	for image, status := range m.status {
		switch {
		case v1alpha1.IsRefusal(status.Reason):
		case status.State == v1alpha1.ImageFailed:
			status.State = v1alpha1.ImagePending
		case status.State == v1alpha1.ImagePresent && status.Reason != "": // its question failed
			status.Attempts, status.Reason = 0, ""
		}
		m.status[image] = status
	}
}

// restart forgets what the controller keeps in memory.
func (c *fakeCluster) restart() {
	c.memory = Memory{}
	for _, m := range c.machines {
		m.heardAt = c.now
		for image := range m.progressAt {
			m.changedAt[image], m.progressAt[image] = c.now, c.now
		}
	}
}

// checkDeterministic asserts that a plan depends on the state alone: not on the order in which the
// state is listed, nor on how often the plan is made.
func checkDeterministic(t *rapid.T, cluster *fakeCluster) {
	state := cluster.state()
	first := Next(state, cluster.limits)
	if !reflect.DeepEqual(state, cluster.state()) {
		t.Fatalf("the state was changed")
	}
	if second := Next(state, cluster.limits); !reflect.DeepEqual(first, second) {
		t.Fatalf("asked twice: %+v, then %+v", first, second)
	}
	if other := Next(shuffled(state, rapid.Uint64().Draw(t, "order")), cluster.limits); !reflect.DeepEqual(first, other) {
		t.Fatalf("in another order: %+v, then %+v", first, other)
	}
}
