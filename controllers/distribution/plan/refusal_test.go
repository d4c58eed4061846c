// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestRefusalOfTheRegistry(t *testing.T) {
	setUp := func() (*fakeCluster, *Prefetch) {
		cluster := newFakeCluster()
		cluster.addNodes(10)
		p := cluster.addPrefetch("web", "reg/a:1")
		p.PullSecrets = []v1alpha1.PullSecretSource{{Namespace: "team", Name: "mine"}}
		cluster.tags["reg/a:1"] = ""
		cluster.run(t, 10)
		return cluster, p
	}
	t.Run("is believed once a second node got it, and reported", func(t *testing.T) {
		cluster, p := setUp()
		if got := cluster.nodesAsked("reg/a:1"); got != minRefusals {
			t.Errorf("%d nodes were sent to ask", got)
		}
		if o := cluster.next().Prefetches[p.Key]; len(o.Refused) != 1 || len(o.Refused["reg/a:1"]) != 1 {
			t.Errorf("the outcome is %+v", o)
		}
		if cluster.machines[cluster.seedsOf("reg/a:1")].status["reg/a:1"].Reason != v1alpha1.ReasonImageNotFound {
			t.Errorf("no entry shows the reason:\n%s", cluster)
		}
	})
	for _, c := range []struct {
		reason string
		change func(cluster *fakeCluster, p *Prefetch)
		after  int
	}{
		{"is asked for again on a refresh", func(_ *fakeCluster, p *Prefetch) { p.Refresh = "again" }, 15},
		{"is asked for again when another prefetch wants it", func(cluster *fakeCluster, _ *Prefetch) {
			cluster.addPrefetch("other", "reg/a:1")
			cluster.tags["reg/a:1"] = "sha256:found"
		}, 15},
		{"is asked for again with other credentials", func(_ *fakeCluster, p *Prefetch) {
			p.PullSecrets = []v1alpha1.PullSecretSource{{Namespace: "team", Name: "key"}}
		}, 15},
		{"is asked for again after a backoff", func(*fakeCluster, *Prefetch) {}, int(refusalBackoff/time.Second) + 15},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster, p := setUp()
			cluster.tags["reg/a:1"] = "sha256:found"
			c.change(cluster, p)
			cluster.run(t, c.after)
			cluster.checkServed(t)
		})
	}
	t.Run("is asked for less and less often", func(t *testing.T) {
		cluster, _ := setUp()
		cluster.run(t, 3600)
		asked := 0
		for _, attempt := range cluster.state().Memory.images["reg/a:1"].failures {
			asked += attempt.refusals
		}
		// Twice; 15 s, 30 s and so on until 8 min later; and then every ten minutes.
		if asked < 10 || asked > 12 {
			t.Errorf("%d times in an hour", asked)
		}
	})
	t.Run("is asked for again by the seed of another image of the prefetch, since they may share layers", func(t *testing.T) {
		cluster := newFakeCluster()
		cluster.addNodes(6)
		cluster.addPrefetch("web", "reg/a:1", "reg/b:1")
		cluster.tags["reg/b:1"] = ""
		for _, m := range cluster.machines {
			m.hung = true // so that the seed of the other image stays one
		}
		// It asks three times, and then another one.
		cluster.run(t, int(4*refusalBackoff/time.Second))
		if got := cluster.nodesAsked("reg/b:1"); cluster.seedsOf("reg/a:1") != "n000" || got != minRefusals {
			t.Fatalf("%d nodes were refused\n%s", got, cluster)
		}
		cluster.tags["reg/b:1"] = "sha256:found"
		cluster.run(t, int(4*refusalBackoff/time.Second)+5)
		if got := cluster.seedsOf("reg/b:1"); got != "n000" {
			t.Errorf("%s brings it\n%s", got, cluster)
		}
	})
	t.Run("of one team's credentials says nothing of another's", func(t *testing.T) {
		cluster := newFakeCluster()
		cluster.addNodes(6)
		cluster.private = true
		bad := cluster.addPrefetch("bad", "reg/a:1")
		bad.PullSecrets = []v1alpha1.PullSecretSource{{Namespace: "x", Name: "old"}, {Namespace: "x", Name: "older"}}
		bad.NodeSelector = map[string]string{"team": "x"}
		good := cluster.addPrefetch("good", "reg/a:1")
		good.PullSecrets = []v1alpha1.PullSecretSource{acceptedSecret}
		good.NodeSelector = map[string]string{"team": "y"}
		for name, m := range cluster.machines {
			m.node.Labels = bad.NodeSelector
			if name == "n005" {
				m.node.Labels = good.NodeSelector
			}
		}
		cluster.run(t, 40)
		cluster.checkServed(t)
	})
}

// nodesAsked counts the nodes whose spec has ever named an image.
func (c *fakeCluster) nodesAsked(image string) (count int) {
	for _, m := range c.machines {
		if c.writes[m.node.Name+" "+image] > 0 {
			count++
		}
	}
	return count
}
