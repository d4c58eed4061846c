// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"time"
)

// A keeper starts a daemon again whenever it ends, until it is dismissed. It waits
// before each start as a kubelet does, but for less long.
type keeper struct {
	dismissed, gone chan struct{}
}

func newKeeper() *keeper {
	return &keeper{dismissed: make(chan struct{}), gone: make(chan struct{})}
}

const (
	minRestartDelay = 100 * time.Millisecond
	maxRestartDelay = 2 * time.Second
	// stableAfter is how long a process has to run for the delay to begin again.
	stableAfter = 10 * time.Second
)

// nextRestartDelay is how long to wait after a process has ended, if the wait before
// it was so long and it has run for so long.
func nextRestartDelay(before, ran time.Duration) time.Duration {
	if ran >= stableAfter {
		return minRestartDelay
	}
	return min(max(2*before, minRestartDelay), maxRestartDelay)
}

// keep is the keeper's goroutine. The process is the one that runs.
func (d *Daemon) keep(k *keeper, process *Process) {
	defer close(k.gone)
	var delay time.Duration
	for process != nil {
		select {
		case <-k.dismissed:
			return
		case <-process.Done():
		}
		delay = nextRestartDelay(delay, time.Since(process.Started))
		d.note("ended by itself (%v), is started again after %v", process.cmd.ProcessState, delay)
		select {
		case <-k.dismissed:
			return
		case <-time.After(delay):
			process = d.restart(k)
		}
	}
}

// restart starts the daemon without waiting until it answers. It returns nil if the
// keeper was dismissed, or cannot start it.
func (d *Daemon) restart(k *keeper) *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keeper != k {
		return nil
	}
	process, err := startProcess(d.machine(), d.command(), d.log)
	if err != nil {
		d.note("cannot be started again: %v", err)
		return nil
	}
	d.process = process
	return process
}

// letEnd has a daemon that ends stay away. What its keeper has just started is
// the daemon's process by then.
func (d *Daemon) letEnd() {
	if d == nil {
		return
	}
	d.mu.Lock()
	k := d.keeper
	d.dismissKeeper()
	d.mu.Unlock()
	if k != nil {
		<-k.gone
	}
}

// dismissKeeper does not wait for the keeper, which may wait for the lock. The caller
// has the lock.
func (d *Daemon) dismissKeeper() {
	if d.keeper != nil {
		close(d.keeper.dismissed)
		d.keeper = nil
	}
}

// note writes into the daemon's own log.
func (d *Daemon) note(format string, args ...any) {
	file, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return // the cluster's files are gone, and the daemon's log with them
	}
	defer func() { _ = file.Close() }()
	_, _ = fmt.Fprintf(file, "cluster: %s %s\n", d.name, fmt.Sprintf(format, args...))
}
