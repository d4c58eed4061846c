// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestWithoutAMirror(t *testing.T) {
	setUp := func(fallback MirrorFallback) (*fakeCluster, *Prefetch) {
		cluster := newFakeCluster()
		cluster.limits.MirrorFallback = fallback
		cluster.addNodes(6)
		cluster.mirrorDown = true
		return cluster, cluster.addPrefetch("web", "reg/a:1", "reg/b:1")
	}
	t.Run("every node is served in the end, one upstream pull at a time, and the outcome says so", func(t *testing.T) {
		cluster, p := setUp(FallbackUpstream)
		cluster.checkPulls = true
		cluster.settle(t)
		cluster.checkServed(t)
		if !cluster.next().Prefetches[p.Key].WithoutMirror {
			t.Error("the outcome does not say so")
		}
	})
	t.Run("no other node uses the upstream if that is not wanted", func(t *testing.T) {
		cluster, p := setUp(FallbackNever)
		cluster.run(t, 300)
		for name, m := range cluster.machines {
			if name != "n000" && (m.content["reg/a:1"] != "" || m.status["reg/a:1"].State != v1alpha1.ImageFailed) {
				t.Errorf("%s: %+v", name, m.status["reg/a:1"])
			}
		}
		if !cluster.next().Prefetches[p.Key].WithoutMirror {
			t.Error("the outcome does not say so")
		}
	})
	t.Run("one node that the mirror fails says nothing of the mirror", func(t *testing.T) {
		cluster, p := setUp(FallbackUpstream)
		cluster.mirrorDown = false
		cluster.machines["n003"].cutOff = true
		cluster.settle(t)
		cluster.checkServed(t)
		if got := cluster.machines["n003"].status["reg/a:1"].Source; got != v1alpha1.SourceUpstream {
			t.Errorf("it came from %s", got)
		}
		if cluster.next().Prefetches[p.Key].WithoutMirror {
			t.Error("the outcome says that there is no mirror")
		}
	})
}

func TestMissWithoutAHolderIsNoReasonForTheUpstream(t *testing.T) {
	missed := func(t *testing.T) (cluster *fakeCluster, seed, peer *machine) {
		cluster = newFakeCluster()
		cluster.addNodes(4)
		cluster.addPrefetch("web", "reg/a:1").RetryLimit = 0
		seed, peer = cluster.machines["n000"], cluster.machines["n001"]
		cluster.run(t, 1)
		cluster.planUntilStable(t)
		seed.hung = true
		cluster.run(t, 2) // the peers follow, and find nothing
		if peer.cached["reg/a:1"].Reason != v1alpha1.ReasonNotOnMirror {
			t.Fatalf("nothing was missed:\n%s", cluster)
		}
		return cluster, seed, peer
	}
	t.Run("the node is admitted again, once its agent has seen that the entry was gone", func(t *testing.T) {
		cluster, _, peer := missed(t)
		cluster.planUntilStable(t)
		if _, asked := peer.spec["reg/a:1"]; asked || cluster.writes["n001 reg/a:1"] != 2 {
			t.Fatalf("asked: %v, written: %v", asked, cluster.writes)
		}
		peer.deliver()
		cluster.work(peer)
		cluster.report(peer)
		cluster.planUntilStable(t)
		if got := peer.spec["reg/a:1"].RegistryPolicy; got != v1alpha1.RegistryPolicyMirror {
			t.Errorf("it is asked for %q", got)
		}
	})
	t.Run("the same when the miss and the holder are seen at once", func(t *testing.T) {
		cluster, seed, peer := missed(t)
		seed.hung = false
		for range layers {
			cluster.now = cluster.now.Add(time.Second)
			cluster.work(seed)
			cluster.report(seed)
		}
		cluster.plan()
		if _, asked := peer.spec["reg/a:1"]; asked || seed.status["reg/a:1"].State != v1alpha1.ImagePresent {
			t.Errorf("the entry was not taken back:\n%s", cluster)
		}
		cluster.settle(t)
		cluster.checkServed(t)
		if got := peer.status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
			t.Errorf("it came from %s", got)
		}
	})
}

func TestFallbackThatFailsTriesTheMirrorAgain(t *testing.T) {
	cluster := newFakeCluster()
	cluster.addNodes(3)
	cluster.machines["n001"].cutOff, cluster.machines["n001"].offline = true, true
	cluster.addPrefetch("web", "reg/a:1")
	cluster.run(t, 60)
	if cluster.machines["n001"].content["reg/a:1"] != "" {
		t.Fatal("this shows nothing")
	}
	cluster.machines["n001"].cutOff = false
	cluster.settle(t)
	cluster.checkServed(t)
	if got := cluster.machines["n001"].status["reg/a:1"].Source; got != v1alpha1.SourceMirror {
		t.Errorf("it came from %s", got)
	}
}

func TestAMirrorHasFailedANodeOnlyWhereItDidNotServe(t *testing.T) {
	for reason, want := range map[string]bool{v1alpha1.ReasonNotOnMirror: true, v1alpha1.ReasonInsufficientDisk: false} {
		p := &placement{state: failed, current: true, Entry: Entry{
			Wanted: &v1alpha1.NodeImage{Name: "reg/a:v1", RegistryPolicy: v1alpha1.RegistryPolicyMirror},
			Status: &v1alpha1.NodeImageStatus{Name: "reg/a:v1", State: v1alpha1.ImageFailed, Reason: reason},
		}}
		if got := p.mirrorFailed(); got != want {
			t.Errorf("%s: the mirror has failed it %t, want %t", reason, got, want)
		}
		p.state = lost // it may have been served since
		if p.mirrorFailed() {
			t.Errorf("%s: the mirror has failed a node that is lost", reason)
		}
	}
}
