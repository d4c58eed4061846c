// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// readyFunc returns nil when the process, just started, answers.
type readyFunc func(ctx context.Context, process *Process) error

// Daemon is a program that can be stopped, killed and started again. Its
// methods may be called by several goroutines.
type Daemon struct {
	name    string
	machine func() *machine
	log     string
	command func() *exec.Cmd
	ready   readyFunc
	// restarts has the daemon started again when it ends by itself.
	restarts bool

	mu      sync.Mutex
	process *Process
	keeper  *keeper // while a daemon that restarts is meant to run
}

func (n *Node) newDaemon(name string, command func() *exec.Cmd, ready readyFunc) *Daemon {
	return &Daemon{
		name:    name,
		machine: func() *machine { return n.machine },
		log:     n.log(name),
		command: command,
		ready:   ready,
	}
}

// Log is the file with what the daemon wrote, over all its runs.
func (d *Daemon) Log() string { return d.log }

// Process is the running process; nil when there is none.
func (d *Daemon) Process() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process == nil || !d.process.Running() {
		return nil
	}
	return d.process
}

// Start starts the daemon and waits until it answers. It does nothing when it
// runs already.
func (d *Daemon) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process != nil && d.process.Running() {
		return nil
	}
	d.dismissKeeper() // the caller does not wait for its next try
	process, err := startProcess(d.machine(), d.command(), d.log)
	if err != nil {
		return err
	}
	d.process = process
	if d.ready != nil {
		if err := d.await(ctx, process); err != nil {
			return fmt.Errorf("start %s on %s: %w\n%s", d.name, d.machine().name, err, tail(d.log))
		}
	}
	if d.restarts {
		d.keeper = newKeeper()
		go d.keep(d.keeper, process)
	}
	return nil
}

// await polls, for daemons have no common way to tell that they are ready.
func (d *Daemon) await(ctx context.Context, process *Process) error {
	const interval = 20 * time.Millisecond
	for {
		err := d.ready(ctx, process)
		if err == nil {
			return nil
		}
		select {
		case <-process.Done():
			return fmt.Errorf("it ended: %w", errors.Join(process.Wait(), err))
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(interval):
		}
	}
}

// Stop asks the daemon to end, and waits until it has.
func (d *Daemon) Stop() {
	d.letEnd()
	if process := d.Process(); process != nil {
		process.Stop()
	}
}

// Kill kills the daemon and waits until it is gone. Containers, which are
// children of their shims, live on.
func (d *Daemon) Kill() {
	d.letEnd()
	if process := d.Process(); process != nil {
		process.Kill()
	}
}

// forget waits for the process of a machine that was killed.
func (d *Daemon) forget() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process != nil {
		<-d.process.Done()
		d.process = nil
	}
}

// tail is the end of a log, for an error message.
func tail(log string) []byte {
	const enough = 2000
	file, err := os.Open(log)
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(-enough, io.SeekEnd); err != nil {
		_, _ = file.Seek(0, io.SeekStart)
	}
	content, _ := io.ReadAll(file)
	return bytes.TrimSpace(content)
}
