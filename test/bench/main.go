// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures Sluice on a real cluster on this machine, several times, and
// prints one line per figure:
//
//	BENCH <name> <value> <unit> (<n> runs: <least> to <greatest>; aim <most>: <pass or FAIL>, <m> of <n> runs)
//
// Everything else goes to standard error. It fails if a figure misses its aim.
// docs/benchmarks.md says what each figure is and how it is measured. Without arguments
// all benchmarks run, otherwise those that are named.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sluice-dev/sluice/test/figures"
)

// benchmark is what can be asked for by name.
type benchmark struct {
	name, about string
	run         func(context.Context, *options, *figures.Results) error
}

var benchmarks = []benchmark{
	{"writes", "API writes per node and image", writes},
	{"latency", "from the last image complete to Ready", latency},
	{"gate", "from the last report to the release of a held Deployment, and an answer of the webhook", gating},
	{"cost", "the API server's work for a write of a NodeImageSet", cost},
	{"pull", "a seed's pull beside that of ctr, and the memory of agents", pull},
	{"spread", "all nodes beside one node alone, over a narrow uplink", spread},
	{"spread-spegel", "the same with the false misses of Spegel", spreadSpegel},
	{"uncoordinated", "beside it: every node for itself, with and without the mirror", uncoordinated},
}

// aims are what figures are to stay at or below. A benchmark that misses one fails.
var aims = map[string]float64{
	"api_writes_per_node_image":          3,
	"ready_latency_p99":                  500,  // ms
	"release_latency_p99":                1000, // ms
	"release_latency_5000_nodes_p99":     1000, // ms
	"webhook_latency_p99":                10,   // ms
	"webhook_latency_5000_nodes_p99":     10,   // ms
	"pull_vs_ctr_ratio":                  1.05,
	"all_nodes_vs_one_pull_ratio":        1.15,
	"all_nodes_vs_one_pull_ratio_spegel": 1.15,
}

// options are the flags.
type options struct {
	uplink   int
	size     int64
	nodes    int
	runs     int
	rounds   int
	timeline bool
	logs     string
	verbose  bool
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.IntVar(&o.uplink, "uplink", 40, "Mbit/s of the uplink, for spread and uncoordinated")
	flags.Int64Var(&o.size, "size", 200, "MiB of their image, which has eight layers")
	flags.IntVar(&o.nodes, "nodes", 6, "their nodes")
	flags.IntVar(&o.runs, "runs", 5, "how often each is measured")
	flags.IntVar(&o.rounds, "rounds", 40, "distributions in a run, for latency and gate")
	flags.BoolVar(&o.timeline, "timeline", false, "tell when each node gets each blob")
	flags.StringVar(&o.logs, "logs", "", "folder that keeps the logs of all programs")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "tell what takes time")
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: bench [flags] [benchmark...]")
		for _, b := range benchmarks {
			fmt.Fprintf(os.Stderr, "  %-14s %s\n", b.name, b.about)
		}
		fmt.Fprint(os.Stderr, flags.FlagUsages())
	}
}

func (o *options) validate() error {
	var errs []error
	for _, flag := range []struct {
		name         string
		value, least int64
	}{
		{"uplink", int64(o.uplink), 1}, {"size", o.size, layers}, {"nodes", int64(o.nodes), 2},
		{"runs", int64(o.runs), 1}, {"rounds", int64(o.rounds), 1},
	} {
		if flag.value < flag.least {
			errs = append(errs, fmt.Errorf("--%s must be at least %d", flag.name, flag.least))
		}
	}
	return errors.Join(errs...)
}

func main() {
	var opts options
	opts.register(pflag.CommandLine)
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	ctrl.SetLogger(logr.Discard()) // the client's log; what is to be told is printed
	err := run(ctx, &opts, pflag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts *options, names []string) error {
	if err := opts.validate(); err != nil {
		return err
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	var missed []string
	for _, b := range chosen {
		tell("%s: %s", b.name, b.about)
		var r figures.Results
		if err := b.run(ctx, opts, &r); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		missed = append(missed, r.Print(os.Stdout, aims)...)
	}
	if len(missed) > 0 {
		return fmt.Errorf("missed the aim of %s", strings.Join(missed, ", "))
	}
	return nil
}

// choose returns the benchmarks of those names in their order here; all if none is
// named.
func choose(names []string) ([]benchmark, error) {
	if len(names) == 0 {
		return benchmarks, nil
	}
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	var chosen []benchmark
	for _, b := range benchmarks {
		if wanted[b.name] {
			chosen = append(chosen, b)
			delete(wanted, b.name)
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("no benchmark is called %q: see --help", name)
	}
	return chosen, nil
}

// tell prints what is no result.
func tell(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
