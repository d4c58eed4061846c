// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package chaos distributes images while something breaks, at a moment chosen at
// random: an agent, a controller, containerd, mirrors, the registry, a node, the API
// server. Each round has images and a fault of its own, on one cluster that lives
// through all of them. After each, by itself and within a bound:
//
//   - every node that is left has every image, by what its containerd finds of content and
//     snapshots;
//   - each blob was fetched from upstream once, or again only where the fault explains
//     it: what was on its way when the fault struck, and what only a lost node had;
//   - no node asked the upstream unless its entry let it, and for each image no more than
//     one node at a time had such an entry, watched through the whole round.
//
// The seed that is printed repeats the faults, their moments and their victims:
//
//	go test ./test/chaos
//	go test ./test/chaos -rounds=200
//	go test ./test/chaos -seed=8153 -first=7 -rounds=1 -v
package chaos

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

var (
	rounds    = flag.Int("rounds", 0, "how many distributions, each with a fault of its own; 0 takes each fault once")
	seed      = flag.Uint64("seed", 0, "chooses faults, moments and victims; 0 takes a new one, which is printed")
	first     = flag.Int("first", 1, "the number of the first round, to repeat one of a longer run")
	onlyFault = flag.String("fault", "", "the name of the only fault; empty: all, in turn")
)

// bound is how long the cluster may take to converge after the end of a fault. It takes longest
// after a registry has refused two nodes: the plan then waits before it asks again.
const bound = 90 * time.Second

func TestChaos(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano() % 1_000_000)
	}
	if *rounds == 0 {
		*rounds = len(hand())
	}
	t.Logf("seed %d", *seed)
	log.SetLogger(logr.Discard()) // a client's complaints while the API server is away
	ctx := t.Context()
	c := start(ctx, t, os.Getenv("SLUICE_TEST_LOGS"))
	for n := *first; n < *first+*rounds; n++ {
		r := newRound(c, n)
		began := time.Now()
		r.play(ctx)
		t.Logf("round %d was over after %v", n, time.Since(began).Round(100*time.Millisecond))
		if t.Failed() {
			t.Fatalf("repeat with: go test ./test/chaos -seed=%d -first=%d -rounds=1 -v", *seed, n)
		}
	}
}

// deal chooses the fault of a round: all of them in some order, then all in another.
func deal(n int) fault {
	all := hand()
	turn := n - 1
	order := rand.New(rand.NewPCG(*seed, uint64(turn/len(all)))).Perm(len(all))
	return all[order[turn%len(all)]]
}

// hand is all faults, or the one that is asked for.
func hand() (all []fault) {
	for _, f := range faults {
		if *onlyFault == "" || f.name == *onlyFault {
			all = append(all, f)
		}
	}
	return all
}

// wait lets a fault last. What the cluster does meanwhile is what is tested.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestEveryFaultHasItsTurn(t *testing.T) {
	g := NewWithT(t)
	dealt := map[string]int{}
	for n := 1; n <= 2*len(faults); n++ {
		dealt[deal(n).name]++
	}
	if *onlyFault == "" {
		g.Expect(dealt).To(HaveLen(len(faults)))
		g.Expect(dealt).To(HaveEach(2))
	}
}
