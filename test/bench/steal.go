// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
)

// On a virtual machine, the hypervisor may give time of the cores to others. Pulls that keep every
// core busy then take longer.
const (
	// mostStolen is the share of the cores' time, 0 to 1, that may be missing.
	mostStolen = 0.05
	// mostTurns is how often a measurement is taken before it is given up.
	mostTurns = 20
)

// undisturbed repeats a measurement, from clean disks, until no time was stolen during it. The
// disturbed measurements do not count; their number is returned.
func undisturbed(ctx context.Context, prepare func() error, measure func() error) (disturbed int, err error) {
	for again := range mostTurns {
		if err := prepare(); err != nil {
			return again, err
		}
		syscall.Sync()
		before, err := stolen()
		if err != nil {
			return again, err
		}
		began := time.Now()
		if err := measure(); err != nil {
			return again, err
		}
		after, err := stolen()
		if err != nil {
			return again, err
		}
		share := (after - before) / time.Since(began).Seconds() / float64(runtime.NumCPU())
		if share <= mostStolen {
			return again, nil
		}
		tell("once more: the hypervisor gave %.0f %% of the cores' time to others", 100*share)
		if err := ctx.Err(); err != nil {
			return again, err
		}
	}
	return mostTurns, fmt.Errorf("%d times in a row, the hypervisor gave more than %.0f %% of the cores' time to others: try on a quieter machine",
		mostTurns, 100*mostStolen)
}

// stolen is how many seconds the cores, summed, have waited for the hypervisor since
// the machine was started ("steal" in proc_stat(5)).
func stolen() (float64, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	stat, err := fs.Stat()
	return stat.CPUTotal.Steal, err
}
