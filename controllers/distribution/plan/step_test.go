// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestWhatSeveralPrefetchesAskOfOneNode(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(2)
	cluster.machines["n001"].node.Labels = map[string]string{"disk": "ssd"}
	secret := func(namespace, name string) v1alpha1.PullSecretSource {
		return v1alpha1.PullSecretSource{Namespace: namespace, Name: name}
	}
	x, y := cluster.addPrefetch("x", "reg/a:1"), cluster.addPrefetch("y", "reg/a:1")
	x.Retention, x.RetryLimit, x.PullSecrets = v1alpha1.RetentionBestEffort, 5, []v1alpha1.PullSecretSource{secret("b", "k"), secret("a", "k")}
	y.Retention, y.RetryLimit, y.PullSecrets = v1alpha1.RetentionPinned, 2, []v1alpha1.PullSecretSource{secret("a", "z"), secret("b", "k")}
	y.NodeSelector = map[string]string{"disk": "ssd"}

	cluster.plan()
	if got, want := cluster.machines["n001"].spec["reg/a:1"].ImagePullSecrets,
		[]v1alpha1.PullSecretSource{secret("b", "k"), secret("a", "k"), secret("a", "z")}; !slices.Equal(got, want) {
		t.Errorf("the secrets are %v, want those of x and then those of y, as they stand there", got)
	}

	cluster.settle(t)
	got := cluster.machines["n001"].spec["reg/a:1"]
	if got.Retention != v1alpha1.RetentionPinned {
		t.Errorf("one wants it pinned, and it is %s", got.Retention)
	}
	if *got.ImageDownloadRetryLimit != 5 {
		t.Errorf("it is tried %d times", *got.ImageDownloadRetryLimit)
	}
	if got := cluster.machines["n000"].spec["reg/a:1"]; got.Retention != v1alpha1.RetentionBestEffort || *got.ImageDownloadRetryLimit != 5 {
		t.Errorf("what only one wants is asked as that one asks: %+v", got)
	}

	delete(cluster.prefetches, y.Key)
	cluster.settle(t)
	if got := cluster.machines["n001"].spec["reg/a:1"]; got.Retention != v1alpha1.RetentionBestEffort {
		t.Errorf("a prefetch that is gone asks for nothing: %+v", got)
	}
}

func TestANodeThatAsksTheMirrorAloneHasNoSecrets(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.addPrefetch("x", "reg/a:1").PullSecrets = []v1alpha1.PullSecretSource{acceptedSecret}
	seeds, peers := 0, 0
	for range 60 {
		cluster.run(t, 1)
		for name, machine := range cluster.machines {
			entry, ok := machine.spec["reg/a:1"]
			if !ok {
				continue
			}
			seed := entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault
			if seed {
				seeds++
			} else {
				peers++
			}
			if slices.Contains(entry.ImagePullSecrets, acceptedSecret) != seed {
				t.Fatalf("%s with the policy %s has the secrets %v", name, entry.RegistryPolicy, entry.ImagePullSecrets)
			}
		}
	}
	if seeds == 0 || peers == 0 {
		t.Errorf("seen: %d seeds, %d peers", seeds, peers)
	}
}

func TestServiceAccountsTakeNoPlaceOfASecret(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(1)
	for i := range maxSecrets + 6 {
		p := cluster.addPrefetch(fmt.Sprintf("a%02d", i), "reg/a:1")
		p.PullSecrets = []v1alpha1.PullSecretSource{{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: p.Namespace, Name: p.Key}}
	}
	cluster.addPrefetch("z", "reg/a:1").PullSecrets = []v1alpha1.PullSecretSource{acceptedSecret}
	step, _ := cluster.plan()
	got := cluster.machines["n000"].spec["reg/a:1"].ImagePullSecrets
	if len(got) != maxSecrets || got[0] != acceptedSecret || got[1].Name != "team/a00" {
		t.Errorf("%d sources: %v", len(got), got)
	}
	for key, outcome := range step.Prefetches {
		if len(outcome.LeftOutSecrets) > 0 {
			t.Errorf("%s has %v left out: a service account may well name none", key, outcome.LeftOutSecrets)
		}
	}
}

func TestSecretsBeyondTheBoundAreLeftOutAndReported(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(1)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		p := cluster.addPrefetch(name, "reg/a:1")
		for i := range 14 {
			p.PullSecrets = append(p.PullSecrets, v1alpha1.PullSecretSource{Namespace: "team", Name: fmt.Sprintf("%s-%02d", name, 13-i)})
		}
	}
	step, _ := cluster.plan()
	if got := cluster.machines["n000"].spec["reg/a:1"].ImagePullSecrets; len(got) != maxSecrets || got[0].Name != "a-13" || got[maxSecrets-1].Name != "e-06" {
		t.Errorf("%d secrets: %v", len(got), got)
	}
	for key, want := range map[string][]string{"team/a": nil, "team/d": nil, "team/e": {"e-00", "e-01", "e-02", "e-03", "e-04", "e-05"}} {
		if got := step.Prefetches[key].LeftOutSecrets; !slices.Equal(got, want) {
			t.Errorf("%s has %v left out, want %v", key, got, want)
		}
	}
}

func TestUnderDiskPressureNothingComesAgain(t *testing.T) {
	for _, c := range []struct {
		reason string
		image  string
		node   string // the one under pressure
		after  int    // seconds of the distribution
		evict  bool
		keeps  bool
	}{
		{"what it has stays pinned", "reg/a:1", "n002", 60, false, true},
		{"what the kubelet deletes is not asked for any more", "reg/a:1", "n002", 60, true, false},
		{"nor what a seed is in the middle of", "reg/a@sha256:a", "n000", 2, false, false},
		{"nor what a resolver is asking for", "reg/a:1", "n000", 2, false, false},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			cluster.addPrefetch("web", c.image)
			cluster.run(t, c.after)
			m := cluster.machines[c.node]
			m.node.DiskPressure = true
			if c.evict {
				clear(m.content)
			}
			cluster.run(t, 30)
			if _, keeps := m.spec[c.image]; keeps != c.keeps {
				t.Errorf("it is asked for it: %v\n%s", keeps, cluster)
			}
			if other := cluster.machines["n001"]; other.content[c.image] == "" {
				t.Error("the others were not served")
			}
			m.node.DiskPressure = false
			cluster.settle(t)
			cluster.checkServed(t)
		})
	}
}

func TestSeedUnderDiskPressureMayPullUntilItsAgentHasSeenTheDemotion(t *testing.T) {
	for _, image := range []string{"reg/a@sha256:a", "reg/a:1"} {
		cluster := newFakeCluster()
		cluster.addNodes(2)
		cluster.addPrefetch("web", image)
		cluster.plan()
		m := cluster.machines["n000"]
		m.deliver()
		m.observed = m.viewGeneration
		m.status[image] = v1alpha1.NodeImageStatus{Name: image, State: v1alpha1.ImagePending} // it waits for a slot on its node
		cluster.report(m)
		m.node.DiskPressure = true
		cluster.planUntilStable(t)
		if got := cluster.seedsOf(image); got != "" {
			t.Errorf("%q is the seed of %s while n000 may begin", got, image)
		}
		m.deliver()
		cluster.work(m)
		cluster.report(m)
		cluster.planUntilStable(t)
		if got := cluster.seedsOf(image); got != "n001" {
			t.Errorf("%q is the seed of %s once the agent of n000 has seen it", got, image)
		}
	}
}

func TestEntriesGoWhenNothingWantsThem(t *testing.T) {
	for _, c := range []struct {
		reason string
		happen func(cluster *fakeCluster, p *Prefetch)
		keeps  bool
	}{
		{"the prefetch is deleted", func(cluster *fakeCluster, p *Prefetch) { delete(cluster.prefetches, p.Key) }, false},
		{"the image is taken off its list", func(_ *fakeCluster, p *Prefetch) { p.Images = []string{"reg/b:1"} }, false},
		{"the node's labels no longer match", func(cluster *fakeCluster, _ *Prefetch) { cluster.machines["n001"].node.Labels = nil }, false},
		{"the node is cordoned", func(cluster *fakeCluster, _ *Prefetch) { cluster.machines["n001"].node.Unschedulable = true }, true},
		{"the node is not Ready", func(cluster *fakeCluster, _ *Prefetch) { cluster.machines["n001"].node.Ready = false }, true},
		{"the node is cordoned, and the prefetch is deleted", func(cluster *fakeCluster, p *Prefetch) {
			cluster.machines["n001"].node.Unschedulable = true
			delete(cluster.prefetches, p.Key)
		}, false},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster := newFakeCluster()
			cluster.addNodes(3)
			p := cluster.addPrefetch("web", "reg/a:1", "reg/b:1")
			p.NodeSelector = map[string]string{"disk": "ssd"}
			for _, m := range cluster.machines {
				m.node.Labels = p.NodeSelector
			}
			cluster.settle(t)
			c.happen(cluster, p)
			cluster.settle(t)
			if _, has := cluster.machines["n001"].spec["reg/a:1"]; has != c.keeps {
				t.Errorf("the entry is there: %v", has)
			}
		})
	}
}

func TestNodeThatIsNotReadyIsNeitherWaitedForNorForgotten(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.settle(t)
	clear(cluster.writes)
	cluster.machines["n002"].node.Ready = false
	cluster.settle(t)
	if got := cluster.next().Prefetches[p.Key].Nodes; !slices.Equal(got, []string{"n000", "n001"}) {
		t.Errorf("%v are waited for", got)
	}
	cluster.machines["n002"].node.Ready = true
	cluster.settle(t)
	if got := cluster.next().Prefetches[p.Key].Nodes; len(got) != 3 || len(cluster.writes) != 0 {
		t.Errorf("%v are waited for; written: %v", got, cluster.writes)
	}
}

func TestNoMatchingNodes(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	p := cluster.addPrefetch("web", "reg/a:1")
	p.NodeSelector = map[string]string{"disk": "none"}
	step := cluster.planUntilStable(t)
	if o := step.Prefetches[p.Key]; len(o.Nodes) != 0 || len(step.Sets) != 0 {
		t.Errorf("got %+v", step)
	}
}

func TestSilentNodes(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(4)
	cluster.machines["n002"].dead = true
	p := cluster.addPrefetch("web", "reg/a:1", "reg/b:1")
	cluster.settle(t)
	o := cluster.next().Prefetches[p.Key]
	if !slices.Equal(o.Silent, []string{"n002"}) || len(o.Nodes) != 4 {
		t.Errorf("got %+v", o)
	}
	before := cluster.machines["n002"].generation
	cluster.addPrefetch("other", "reg/c:1")
	cluster.settle(t)
	if after := cluster.machines["n002"].generation; after != before {
		t.Errorf("%d more writes to a node that does not listen", after-before)
	}
	cluster.machines["n002"].dead = false
	cluster.settle(t)
	cluster.checkServed(t)
	if o := cluster.next().Prefetches[p.Key]; len(o.Silent) != 0 {
		t.Errorf("it is back, and yet %v", o.Silent)
	}
}

// A node whose agent hangs is waited for, one whose agent is gone is not.
func TestAnAgentThatDiesInTheMiddleOfAPullIsSilent(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(4)
	cluster.makeHolder("n000", "reg/a:1", "sha256:reg/a:1-1")
	dead, hung := cluster.machines["n001"], cluster.machines["n002"]
	dead.hung, hung.hung = true, true
	p := cluster.addPrefetch("web", "reg/a:1")
	cluster.run(t, 5)
	for _, m := range []*machine{dead, hung} {
		if status := m.cached["reg/a:1"]; status.State != v1alpha1.ImagePulling || m.cachedObserved != m.generation {
			t.Fatalf("%s does not pull:\n%s", m.node.Name, cluster)
		}
	}
	dead.dead = true
	cluster.run(t, int((v1alpha1.HeartbeatInterval+cluster.limits.AgentTimeout)/time.Second)-5)
	if o := cluster.next().Prefetches[p.Key]; len(o.Silent) != 0 {
		t.Errorf("too soon: %v", o.Silent)
	}
	cluster.run(t, 5)
	if o := cluster.next().Prefetches[p.Key]; !slices.Equal(o.Silent, []string{"n001"}) {
		t.Errorf("silent: %v", o.Silent)
	}
	dead.dead, dead.hung = false, false
	cluster.run(t, 20)
	if o := cluster.next().Prefetches[p.Key]; len(o.Silent) != 0 || dead.content["reg/a:1"] == "" {
		t.Errorf("it is back, and yet %v:\n%s", o.Silent, cluster)
	}
}

func TestSetIsCompleteAndSorted(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(1)
	cluster.addPrefetch("web", "reg/c:1", "reg/a:1")
	cluster.settle(t)
	cluster.addPrefetch("other", "reg/b:1")
	set := cluster.next().Sets["n000"]
	var names []string
	for _, entry := range set {
		names = append(names, entry.Name)
	}
	if !slices.Equal(names, []string{"reg/a:1", "reg/b:1", "reg/c:1"}) {
		t.Errorf("the set is %v", names)
	}
}

func (c *fakeCluster) next() Step { return Next(c.state(), c.limits) }
