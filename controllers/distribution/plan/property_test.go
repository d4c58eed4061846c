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

// TestAnyHistory drives a small cluster through whatever can happen to it, in any
// order, and asserts the invariants at every plan and the outcome at the end.
func TestAnyHistory(t *testing.T) { rapid.Check(t, history) }

// TestUpstreamIsNeverCrowded asserts that the limit holds not only in the specs but
// for what nodes do, however late each hears of the other, as long as nobody is given
// up for lost.
func TestUpstreamIsNeverCrowded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.limits.SeedTimeout, w.limits.AgentTimeout = 1000*time.Hour, 1000*time.Hour
		w.heedful = true
		w.joinMany(rapid.IntRange(2, 4).Draw(t, "nodes"))
		p := w.wish("web", "reg/a:1")
		refreshed := 0
		t.Repeat(map[string]func(*rapid.T){
			"":             func(t *rapid.T) { w.check(t) },
			"uneven round": func(t *rapid.T) { w.unevenRound(t) },
			"more rounds":  func(t *rapid.T) { w.unevenRound(t) },
			"flap": func(t *rapid.T) {
				m := w.machines[rapid.SampledFrom(slices.Sorted(maps.Keys(w.machines))).Draw(t, "node")]
				m.node.Ready = !m.node.Ready
			},
			"pressure": func(t *rapid.T) {
				m := w.machines[rapid.SampledFrom(slices.Sorted(maps.Keys(w.machines))).Draw(t, "node")]
				m.node.DiskPressure = !m.node.DiskPressure
			},
			"refresh": func(*rapid.T) { refreshed++; p.Resolution = fmt.Sprintf("1/%d", refreshed) },
			"move the tag": func(*rapid.T) {
				refreshed++
				w.tags["reg/a:1"] = fmt.Sprintf("sha256:a-%d", refreshed)
			},
			"delete":  func(*rapid.T) { delete(w.wishes, p.Key) },
			"restore": func(*rapid.T) { w.wishes[p.Key] = p },
			"another": func(*rapid.T) { w.wish("other", "reg/a:1") },
			"restart": func(*rapid.T) { w.restart() },
		})
	})
}

// TestOneNodeFetchesForAll asserts that prefetches which come while an image is on its way
// send no second node upstream for it.
func TestOneNodeFetchesForAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.limits.SeedTimeout, w.limits.AgentTimeout = 1000*time.Hour, 1000*time.Hour
		w.joinMany(3)
		come := func() { w.wish(fmt.Sprint(len(w.wishes)), "reg/a:1").RetryLimit = 1000 }
		come()
		seeds := make(map[string]bool)
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				for name, m := range w.machines {
					if m.status["reg/a:1"].Source == v1alpha1.SourceUpstream {
						seeds[name] = true
					}
				}
				if len(seeds) > 1 {
					t.Fatalf("%v fetched it\n%s", keys(seeds), w)
				}
			},
			"plan":         func(*rapid.T) { w.plan() },
			"uneven round": func(t *rapid.T) { w.unevenRound(t) },
			"more rounds":  func(t *rapid.T) { w.unevenRound(t) },
			"come":         func(*rapid.T) { come() },
		})
	})
}

// unevenRound plans and has each agent do a part of its turn only.
func (w *world) unevenRound(t *rapid.T) {
	w.plan()
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		m := w.machines[name]
		switch rapid.SampledFrom([]string{"all", "deaf", "mute", "busy"}).Draw(t, name) {
		case "all":
			m.deliver()
			w.work(m)
			w.report(m)
		case "deaf": // it goes on with what it knows
			w.work(m)
			w.report(m)
		case "mute": // nobody hears of it
			m.deliver()
			w.work(m)
		}
	}
}

// FuzzAnyHistory lets the fuzzer look for a history that coverage leads to.
func FuzzAnyHistory(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(history))
}

func history(t *rapid.T) {
	w := newWorld()
	w.limits.UpstreamPullers = rapid.IntRange(1, 2).Draw(t, "upstreamPullers")
	w.limits.Fanout = rapid.IntRange(1, 3).Draw(t, "fanout")
	w.limits.MaxConcurrentPulls = rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "maxConcurrentPulls")
	w.limits.FollowSeed = rapid.Bool().Draw(t, "followSeed")
	images := []string{"reg/a:1", "reg/b:1", "reg/c@sha256:c", "reg/d:1"}
	for _, image := range images {
		w.tags[image] = "sha256:" + image + "-0"
	}
	joined, tagged := 0, 0
	join := func(t *rapid.T) {
		m := w.join(fmt.Sprintf("n%02d", joined), func(n *Node) {
			n.Platform = rapid.SampledFrom([]string{"linux/amd64", "linux/amd64", "linux/arm64", "windows/amd64"}).Draw(t, "platform")
			n.Zone = rapid.SampledFrom([]string{"", "east", "west"}).Draw(t, "zone")
			n.Labels = map[string]string{"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")}
		})
		m.slots = rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "slots")
		m.asks = rapid.SampledFrom([]int{0, 5, 60}).Draw(t, "asks")
		joined++
	}
	someMachine := func(t *rapid.T) *machine {
		if len(w.machines) == 0 {
			join(t)
		}
		return w.machines[rapid.SampledFrom(slices.Sorted(maps.Keys(w.machines))).Draw(t, "node")]
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
		p.PullSecrets = nil
		if rapid.Bool().Draw(t, "secret") {
			p.PullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: p.Namespace, Name: "s-" + p.UID}}
		}
	}
	generation := 1
	edit := func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "prefetch")
		p := w.wishes["team/"+name]
		if p == nil {
			p = w.wish(name)
		}
		generation++
		p.Resolution = fmt.Sprint(generation)
		describe(t, p)
	}
	for range rapid.IntRange(1, 8).Draw(t, "nodes") {
		join(t)
	}
	edit(t)

	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) { w.check(t) },
		"plan": func(t *rapid.T) {
			sameWhateverTheOrder(t, w)
			w.plan()
		},
		"deliver":         func(t *rapid.T) { someMachine(t).deliver() },
		"work":            func(t *rapid.T) { w.work(someMachine(t)) },
		"report":          func(t *rapid.T) { w.report(someMachine(t)) },
		"round":           func(*rapid.T) { w.plan(); w.round() },
		"join":            join,
		"leave":           func(t *rapid.T) { delete(w.machines, someMachine(t).node.Name) },
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
			m.hung, m.patience = !m.hung, rapid.SampledFrom([]int{0, 1, 20}).Draw(t, "patience")
		},
		"lose the runtime": func(t *rapid.T) {
			m := someMachine(t)
			m.node.RuntimeDown = !m.node.RuntimeDown
			m.hung = m.node.RuntimeDown
		},
		"cut off": func(t *rapid.T) { m := someMachine(t); m.cutOff = !m.cutOff },
		"fill":    func(t *rapid.T) { m := someMachine(t); m.full = !m.full },
		"lose":    func(t *rapid.T) { clear(someMachine(t).content) },
		"edit":    edit,
		"delete": func(t *rapid.T) {
			delete(w.wishes, "team/"+rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "prefetch"))
		},
		"move the tag": func(t *rapid.T) {
			tagged++
			image := rapid.SampledFrom(images).Draw(t, "image")
			w.tags[image] = fmt.Sprintf("sha256:%s-%d", image, tagged)
		},
		"drop the tag":     func(t *rapid.T) { w.tags[rapid.SampledFrom(images).Draw(t, "image")] = "" },
		"registry":         func(*rapid.T) { w.down = !w.down },
		"mirror":           func(*rapid.T) { w.dry = !w.dry },
		"wait":             func(t *rapid.T) { w.now = w.now.Add(time.Duration(rapid.IntRange(1, 300).Draw(t, "s")) * time.Second) },
		"restart yourself": func(*rapid.T) { w.restart() },
		"rest":             func(t *rapid.T) { w.still(t) },
	})

	// Whoever can be served is served in the end. The mirror may stay away.
	w.down = false
	for _, image := range images {
		if w.tags[image] == "" {
			w.tags[image] = "sha256:" + image + "-found"
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		w.machines[name].recover()
		if w.machines[name].dead {
			delete(w.machines, name)
		}
	}
	w.settle(t)
	w.checkServed(t)
}

// recover has a machine get over whatever was wrong with it, but that the mirror does not
// serve it. Its agent tries again what has failed.
func (m *machine) recover() {
	m.offline, m.hung, m.full = false, false, false
	m.node.DiskPressure, m.node.RuntimeDown = false, false
	for image, status := range m.status {
		switch {
		case v1alpha1.IsRefusal(status.Reason):
		case status.State == v1alpha1.ImageFailed:
			status.State = v1alpha1.ImagePending
		case status.State == v1alpha1.ImagePresent && status.Reason != "": // it asks in vain
			status.Attempts, status.Reason = 0, ""
		}
		m.status[image] = status
	}
}

// restart forgets what the controller keeps in memory.
func (w *world) restart() {
	w.memory = Memory{}
	for _, m := range w.machines {
		m.heard = w.now
		for image := range m.progress {
			m.changed[image], m.progress[image] = w.now, w.now
		}
	}
}

// sameWhateverTheOrder asserts that a plan depends on what is there, not on how it is
// listed or how often it is asked.
func sameWhateverTheOrder(t *rapid.T, w *world) {
	state := w.state()
	first := Next(state, w.limits)
	if !reflect.DeepEqual(state, w.state()) {
		t.Fatalf("the state was changed")
	}
	if again := Next(state, w.limits); !reflect.DeepEqual(first, again) {
		t.Fatalf("asked twice: %+v, then %+v", first, again)
	}
	if other := Next(shuffled(state, rapid.Uint64().Draw(t, "order")), w.limits); !reflect.DeepEqual(first, other) {
		t.Fatalf("in another order: %+v, then %+v", first, other)
	}
}
