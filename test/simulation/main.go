// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command simulation runs the plan on up to 10,000 simulated nodes and prints, for
// each fanout, how long it takes until every node has an image, and how often the
// image comes over the uplink; beside everyone pulling from the upstream, and the best
// that any plan could do in this model.
package main

import (
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

func main() {
	sizes := flag.String("nodes", "10,100,1000,10000", "sizes of the cluster, separated by commas")
	flag.Parse()
	if err := run(os.Stdout, *sizes); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// rest is how long peers leave a layer alone after a miss.
const rest = 5 * time.Second

// scenarios are the models that are shown.
var scenarios = []model{
	{name: "Slow uplink: 200 MiB in 8 layers, uplink 40 Mbit/s, nodes 1 Gbit/s",
		layers: 8, layer: 25 * mebibyte, uplink: 40 * megabit, link: 1000 * megabit, unpack: 100 * mebibyte, peerStreams: 1, falseMiss: 0.02, rest: rest},
	{name: "Fast uplink: 1 GiB in 8 layers, uplink 1 Gbit/s, nodes 1 Gbit/s",
		layers: 8, layer: 128 * mebibyte, uplink: 1000 * megabit, link: 1000 * megabit, unpack: 100 * mebibyte, peerStreams: 1, falseMiss: 0.02, rest: rest},
	{name: "With faults: as the first, but 1 % of the nodes have no agent, every tenth search of the mirror is given up, and the seed is switched off after half of its pull",
		layers: 8, layer: 25 * mebibyte, uplink: 40 * megabit, link: 1000 * megabit, unpack: 100 * mebibyte, peerStreams: 1,
		deaf: 0.01, falseMiss: 0.1, rest: rest, loseSeed: 0.5},
}

// way is one line of the table.
type way struct {
	name string
	do   func(m model, nodes int) outcome
}

func ways() []way {
	all := []way{{"everyone from upstream", everyoneFromUpstream}}
	for _, fanout := range []int{1, 2, 4, 8, 16, math.MaxInt32} {
		name := "fanout " + strconv.Itoa(fanout)
		if fanout == math.MaxInt32 {
			name = "fanout ∞"
		}
		all = append(all, way{name, func(m model, nodes int) outcome { return planned(m, nodes, limits(fanout, true)) }})
	}
	all = append(all,
		way{"fanout 4, not following the seed", func(m model, nodes int) outcome { return planned(m, nodes, limits(4, false)) }},
		way{"fanout 4, eight layers at a time", func(m model, nodes int) outcome {
			m.peerStreams = 8
			return planned(m, nodes, limits(4, true))
		}},
		way{"fanout 4, two seeds", func(m model, nodes int) outcome {
			l := limits(4, true)
			l.UpstreamPullers = 2
			return planned(m, nodes, l)
		}},
		way{"fanout 4, misses rest 3 s", resting(3*time.Second, false)},
		way{"fanout 4, misses rest 0.5 s", resting(time.Second/2, false)},
		way{"fanout 4, misses rest 0.5 s, the mirror keeps nothing", resting(time.Second/2, true)},
		way{"no plan can beat, without faults", func(m model, nodes int) outcome { return outcome{all: m.optimum(nodes), copies: 1} }})
	return all
}

// resting is the default plan with peers that ask again sooner.
func resting(rest time.Duration, fresh bool) func(model, int) outcome {
	return func(m model, nodes int) outcome {
		m.rest, m.fresh = rest, fresh
		return planned(m, nodes, limits(4, true))
	}
}

func limits(fanout int, follow bool) plan.Limits {
	l := plan.DefaultLimits()
	l.Fanout, l.FollowSeed = fanout, follow
	return l
}

func run(out io.Writer, list string) error {
	var sizes []int
	for size := range strings.SplitSeq(list, ",") {
		nodes, err := strconv.Atoi(strings.TrimSpace(size))
		if err != nil || nodes < 1 {
			return fmt.Errorf("read -nodes %q: want numbers of nodes such as 10,1000", list)
		}
		sizes = append(sizes, nodes)
	}
	for _, m := range scenarios {
		fmt.Fprintf(out, "%s\nOne node alone: %v. Time until every node is ready (as a multiple of that), copies of the image over the uplink, and API writes a node:\n\n",
			m.name, round(m.onePull()))
		fmt.Fprintln(out, table(m, sizes, simulate(m, sizes)))
	}
	return nil
}

// simulate runs each way with each size, on all processors.
func simulate(m model, sizes []int) [][]outcome {
	results := make([][]outcome, len(ways()))
	var group sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for i, way := range ways() {
		results[i] = make([]outcome, len(sizes))
		for j, nodes := range sizes {
			group.Go(func() {
				slots <- struct{}{}
				results[i][j] = middle(way, m, nodes)
				<-slots
			})
		}
	}
	group.Wait()
	return results
}

// middle is the outcome of the run that takes neither long nor short of five, which differ in what
// chance decides. With many nodes one run has chance enough.
func middle(way way, m model, nodes int) outcome {
	runs := 5
	if nodes > 100 {
		runs = 1
	}
	outcomes := make([]outcome, runs)
	for i := range outcomes {
		m.draw = uint64(i)
		outcomes[i] = way.do(m, nodes)
	}
	slices.SortFunc(outcomes, func(a, b outcome) int {
		return a.compare(b)
	})
	return outcomes[runs/2]
}

func table(m model, sizes []int, results [][]outcome) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\t")
	for _, nodes := range sizes {
		fmt.Fprintf(w, "%d nodes\t\t\t\t", nodes)
	}
	fmt.Fprintln(w)
	for i, way := range ways() {
		fmt.Fprintf(w, "%s\t", way.name)
		for _, o := range results[i] {
			if o.all == 0 {
				fmt.Fprintf(w, "never\t\t%.1f\t%.1f\t", o.copies, o.writes)
				continue
			}
			fmt.Fprintf(w, "%v\t%.2f×\t%.1f\t%s\t", round(o.all), o.all.Seconds()/m.onePull().Seconds(), o.copies, written(o.writes))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // to memory
	lines := strings.Split(text.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// written leaves out what no controller was there to write.
func written(writes float64) string {
	if writes == 0 {
		return "–"
	}
	return strconv.FormatFloat(writes, 'f', 1, 64)
}

func round(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
