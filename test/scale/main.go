// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command scale measures what distributions to many nodes cost the API server, etcd and the
// controller, and how soon things happen meanwhile. It prints lines as test/bench does, everything
// else goes to standard error, and it fails if a case does not end in time or misses an aim.
//
// API server, etcd and controllers are the real programs. The nodes are real Node objects with
// heartbeats and real node agents, all in this process, on container runtimes that have nothing but
// a memory. docs/benchmarks.md says what each figure is. Without arguments all cases are measured,
// otherwise those that are named.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sluice-dev/sluice/test/figures"
)

// options are the flags.
type options struct {
	nodes int
	bound time.Duration
	idle  time.Duration
	logs  string
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.IntVar(&o.nodes, "nodes", 5000, "simulated nodes")
	flags.DurationVar(&o.bound, "bound", 10*time.Minute, "how long a case, and what prepares it, may each take")
	flags.DurationVar(&o.idle, "idle", 30*time.Second, "how long what goes on in the background is measured, with the probe and without")
	flags.StringVar(&o.logs, "logs", "", "folder that keeps the logs of the controllers")
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: scale [flags] [case...]")
		for _, c := range cases {
			fmt.Fprintf(os.Stderr, "  %-12s %s\n", c.name, c.about)
		}
		fmt.Fprint(os.Stderr, flags.FlagUsages())
	}
}

func (o *options) validate() error {
	var errs []error
	if o.nodes < 2 {
		errs = append(errs, errors.New("--nodes must be at least 2"))
	}
	if o.bound <= 0 || o.idle <= 0 {
		errs = append(errs, errors.New("--bound and --idle must be more than 0"))
	}
	return errors.Join(errs...)
}

// aims are what figures are to stay at or below. Most are not reached yet.
var aims = map[string]float64{
	"fill_20_api_cpu":           25,   // ms a node
	"more_on_20_api_cpu":        10,   // ms a node
	"more_on_100_api_cpu":       12,   // ms a node
	"more_on_20_etcd_written":   10,   // KiB a node
	"more_on_100_etcd_written":  10,   // KiB a node
	"fill_20_controller_rss":    500,  // MiB
	"fill_20_status_behind_p99": 3,    // s
	"etcd_database":             1024, // MiB
}

func main() {
	var opts options
	opts.register(pflag.CommandLine)
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	discardLogs()
	err := run(ctx, &opts, pflag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// discardLogs leaves out what clients log. What is to be told is printed.
func discardLogs() {
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
}

func run(ctx context.Context, opts *options, names []string) (err error) {
	if err := opts.validate(); err != nil {
		return err
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	began := time.Now()
	r, err := start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	tell("%d nodes and two controllers run after %v", opts.nodes, time.Since(began).Round(time.Second))
	var missed []string
	for _, c := range slices.Concat(background, chosen, []scenario{database}) {
		tell("%s: %s", c.name, c.about)
		var results figures.Results
		err := c.run(ctx, r, &results)
		missed = append(missed, results.Print(os.Stdout, aims)...)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("missed the aim of %s", strings.Join(missed, ", "))
	}
	return nil
}

// choose returns the cases of those names in their order here, because most find what those before
// them left; all if none is named.
func choose(names []string) ([]scenario, error) {
	for _, name := range names {
		if !slices.ContainsFunc(cases, func(c scenario) bool { return c.name == name }) {
			return nil, fmt.Errorf("no case is called %q: see --help", name)
		}
	}
	var chosen []scenario
	for _, c := range cases {
		if len(names) == 0 || slices.Contains(names, c.name) {
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

// tell prints what is no result.
func tell(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
