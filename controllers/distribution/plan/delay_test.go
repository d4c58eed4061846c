// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// delayByFailure is, by the way in which nodes fail, how much later that may leave the others
// served.
var delayByFailure = map[string]time.Duration{
	"dead":         6 * answerTimeout,
	"hung":         3 * serveTimeout,
	"hung halfway": 3*serveTimeout + DefaultLimits().SeedTimeout,
	"cut off":      3 * serveTimeout,
	"refused":      serveTimeout,
	"full":         serveTimeout,
}

// TestFailingNodesDelayOthersByNoMoreThanATimeout distributes images in a random cluster with and
// without nodes that fail: any up to half of the nodes, in any places.
func TestFailingNodesDelayOthersByNoMoreThanATimeout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := distribution{
			limits: DefaultLimits(),
			nodes:  rapid.IntRange(4, 80).Draw(t, "nodes"),
			images: rapid.IntRange(1, 5).Draw(t, "images"),
			slots:  rapid.SampledFrom([]int{0, 3}).Draw(t, "slots"),
		}
		d.limits.Fanout = rapid.IntRange(2, 8).Draw(t, "fanout")
		d.limits.FollowSeed = rapid.Bool().Draw(t, "followSeed")
		failing := rapid.IntRange(1, d.nodes/2).Draw(t, "failing")
		first := rapid.IntRange(1, d.nodes-failing).Draw(t, "first")
		sideBySide := rapid.Bool().Draw(t, "side by side")
		d.failures = make(map[int]string)
		limit := time.Duration(0)
		for i := range failing {
			at := first + i
			if !sideBySide {
				at = rapid.IntRange(1, d.nodes-1).Draw(t, "node")
			}
			d.failures[at] = rapid.SampledFrom(slices.Sorted(maps.Keys(delayByFailure))).Draw(t, "way")
			limit = max(limit, delayByFailure[d.failures[at]])
		}
		if without, with := d.duration(t, false), d.duration(t, true); with > without+limit {
			t.Fatalf("%v without the nodes that fail, %v with %d of %d: %v", without, with, len(d.failures), d.nodes, d.failures)
		}
	})
}

func TestDelayDoesNotGrowWithTheNodesThatFail(t *testing.T) {
	for way, limit := range delayByFailure {
		t.Run(way, func(t *testing.T) {
			for _, failing := range []int{8, 32, 128} {
				d := distribution{limits: DefaultLimits(), nodes: 2*failing + 1, images: 1, failures: make(map[int]string)}
				for i := range failing {
					d.failures[1+i] = way
				}
				without, with := d.duration(t, false), d.duration(t, true)
				t.Logf("%v with %d of %d nodes in front that fail, %v without them", with, failing, d.nodes, without)
				if with > without+limit {
					t.Error("they delay the others by more than a timeout")
				}
			}
		})
	}
}

// distribution is a distribution of images from the first node, which is the seed.
type distribution struct {
	limits               Limits
	nodes, images, slots int
	failures             map[int]string // by node, how it fails
}

// duration is how long it takes until all nodes that do not fail have all images, in a cluster with
// or without those that fail.
func (d distribution) duration(t failer, withFailing bool) time.Duration {
	t.Helper()
	cluster := newFakeCluster()
	cluster.limits = d.limits
	var images []string
	for i := range d.images {
		images = append(images, fmt.Sprintf("reg/i%d@sha256:%d", i, i))
	}
	cluster.addPrefetch("web", images...)
	var well []*machine
	for i := range d.nodes {
		way, fails := d.failures[i]
		if fails && !withFailing {
			continue
		}
		m := cluster.addNode(fmt.Sprintf("n%03d", i))
		m.slots, m.missTurns = d.slots, int(time.Minute/time.Second)
		switch way {
		case "dead":
			m.dead = true
		case "hung":
			m.hung = true
		case "hung halfway":
			m.hung, m.hungAfter = true, layers/2
		case "cut off": // it goes on asking
			m.cutOff = true
		case "refused": // its pulls end at once
			m.cutOff, m.missTurns = true, 0
		case "full":
			m.diskFull = true
		default:
			well = append(well, m)
		}
	}
	cluster.machines["n000"].node.KubeletImages = images
	began := cluster.now
	for slices.ContainsFunc(well, func(m *machine) bool { return len(m.content) < len(images) }) {
		cluster.run(t, 1)
		if cluster.now.Sub(began) > time.Hour {
			t.Fatalf("it never ends\n%s", cluster)
		}
	}
	return cluster.now.Sub(began)
}
