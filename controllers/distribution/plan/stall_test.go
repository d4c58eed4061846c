// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestImagesThatWaitForASlotOnTheirSeed(t *testing.T) {
	const pace = 45 // seconds a layer
	setUp := func(t *testing.T) (cluster *fakeCluster, seed *machine, images []string) {
		cluster = newFakeCluster()
		cluster.addNodes(4)
		for i := range 9 {
			images = append(images, fmt.Sprintf("reg/i%d@sha256:%d", i, i))
		}
		cluster.addPrefetch("web", images...)
		for _, m := range cluster.machines {
			m.slots, m.layerTurns = 3, pace
		}
		cluster.run(t, 2*layers*pace) // more than seedTimeout
		return cluster, cluster.machines["n000"], images
	}
	// moved counts the images of which another node is the seed.
	moved := func(cluster *fakeCluster, images []string) (count int) {
		for _, image := range images {
			if seed := cluster.seedsOf(image); seed != "" && seed != "n000" {
				count++
			}
		}
		return count
	}
	t.Run("stay there while it gets on with the others", func(t *testing.T) {
		cluster, _, images := setUp(t)
		cluster.run(t, 2*len(images)*layers*pace)
		cluster.checkServed(t)
		for _, image := range images {
			for name, m := range cluster.machines {
				if got := m.status[image].Source; (got == v1alpha1.SourceUpstream) != (name == "n000") {
					t.Errorf("%s got %s from %s", name, image, got)
				}
			}
		}
	})
	t.Run("stay where a mirror that serves nothing takes the slots", func(t *testing.T) {
		cluster := newFakeCluster()
		cluster.addNodes(2)
		images := []string{"reg/a@sha256:a", "reg/b@sha256:b", "reg/c@sha256:c", "reg/d@sha256:d"}
		for _, image := range images {
			cluster.makeHolder("n000", image, digestIn(image))
		}
		m := cluster.machines["n001"]
		m.slots, m.cutOff, m.missTurns = 1, true, 60
		cluster.addPrefetch("web", images...).RetryLimit = 1
		cluster.run(t, 20*60)
		cluster.checkServed(t)
	})
	for _, c := range []struct {
		reason string
		fail   func(m *machine)
		within time.Duration
	}{
		{
			reason: "move when it receives nothing any more, after SeedTimeout",
			fail:   func(m *machine) { m.hung = true },
			within: 2*time.Minute + 5*time.Second,
		},
		{
			reason: "move when its tries hang one after the other, after SeedTimeout as well",
			fail:   func(m *machine) { m.hung, m.retryTurns = true, 45 },
			within: 2*time.Minute + 5*time.Second,
		},
		{
			reason: "move when its agent dies, after SeedTimeout and AgentTimeout",
			fail:   func(m *machine) { m.dead = true },
			within: 2*time.Minute + 35*time.Second,
		},
	} {
		t.Run(c.reason, func(t *testing.T) {
			cluster, seed, images := setUp(t)
			waiting := 0
			for _, image := range images {
				if seed.status[image].Attempts == 0 {
					waiting++
				}
			}
			if waiting == 0 || moved(cluster, images) > 0 {
				t.Fatalf("%d wait, %d were moved\n%s", waiting, moved(cluster, images), cluster)
			}
			c.fail(seed)
			cluster.run(t, int(c.within/time.Second))
			if got := moved(cluster, images); got < waiting {
				t.Errorf("after %v only %d were moved\n%s", c.within, got, cluster)
			}
		})
	}
}

func TestSeedThatUnpacks(t *testing.T) {
	const unpacking = 5 * time.Minute
	setUp := func(t *testing.T, nodes int) (cluster *fakeCluster, seed *machine) {
		cluster = newFakeCluster()
		cluster.addNodes(nodes)
		cluster.addPrefetch("web", "reg/a:1")
		for _, m := range cluster.machines {
			m.unpackTurns = int(unpacking / time.Second)
		}
		cluster.run(t, 2*layers)
		seed = cluster.machines["n000"]
		if s := seed.status["reg/a:1"]; s.State != v1alpha1.ImagePulling || s.FinishedAt == nil || cluster.seedsOf("reg/a:1") != "n000" {
			t.Fatalf("it does not unpack\n%s", cluster)
		}
		return cluster, seed
	}
	t.Run("is not demoted for it, neither alone nor beside others", func(t *testing.T) {
		for _, nodes := range []int{1, 4} {
			cluster, seed := setUp(t, nodes)
			cluster.run(t, int(unpacking/time.Second))
			if s := seed.status["reg/a:1"]; s.State != v1alpha1.ImagePresent || seed.pulls != 1 || cluster.writes["n000 reg/a:1"] > 3 {
				t.Errorf("of %d nodes: %+v after %d writes\n%s", nodes, s, cluster.writes["n000 reg/a:1"], cluster)
			}
		}
	})
	t.Run("is demoted when that does not end", func(t *testing.T) {
		cluster, seed := setUp(t, 2)
		seed.hung = true
		cluster.run(t, int(unpackFactor*cluster.limits.SeedTimeout/time.Second)-2*layers)
		if got := cluster.seedsOf("reg/a:1"); got != "n000" {
			t.Errorf("too soon %q was\n%s", got, cluster)
		}
		cluster.run(t, 2*layers)
		if got := cluster.seedsOf("reg/a:1"); got != "n001" {
			t.Errorf("%q is the seed\n%s", got, cluster)
		}
	})
}
