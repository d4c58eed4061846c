// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo shows the main job of Sluice on a real cluster on this machine,
// and leaves the cluster up to play with. It prints only what it has seen: when
// one of its claims does not hold, it says which and exits with 1.
//
// The cluster lives in a process of its own, the supervisor, which is this
// program again. It ends on SIGTERM, and everything of the cluster with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
)

type options struct {
	nodes     int
	exit      bool
	down      bool
	supervise bool
}

func (o *options) Validate() error {
	if o.nodes < 2 || o.nodes > 20 {
		return fmt.Errorf("--nodes=%d: must be between 2, for one to pull from the other, and 20", o.nodes)
	}
	if o.exit && o.down {
		return errors.New("--exit and --down exclude each other")
	}
	return nil
}

func main() {
	var opts options
	pflag.IntVar(&opts.nodes, "nodes", 3, "number of nodes")
	pflag.BoolVar(&opts.exit, "exit", false, "take everything down at the end")
	pflag.BoolVar(&opts.down, "down", false, "take down the cluster that an earlier run left up")
	pflag.BoolVar(&opts.supervise, "supervise", false, "be the process that runs the cluster")
	_ = pflag.CommandLine.MarkHidden("supervise")
	pflag.Parse()
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) // for good
	// The client's log; what is to be told is printed.
	ctrl.SetLogger(logr.Discard())
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	if err := opts.Validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the demo makes network namespaces and mounts, which only root may: run 'sudo make demo'")
	}
	switch {
	case opts.down:
		return takeDown(ctx)
	case opts.supervise:
		return supervise(ctx, opts)
	}
	return demonstrate(ctx, opts)
}

// demonstrate brings the cluster up, runs the show, and ends or leaves it.
func demonstrate(ctx context.Context, opts options) (err error) {
	info, err := bringUp(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		if opts.exit {
			err = errors.Join(err, takeDown(context.WithoutCancel(ctx)))
			return
		}
		info.farewell()
	}()
	return newShow(info).run(ctx)
}
