// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long a program may take to end when asked to.
const stopTimeout = 10 * time.Second

// Process is a program that runs on a node.
type Process struct {
	// Log is the file with what it wrote, unless its command says otherwise.
	Log string
	// Started is when it was started.
	Started time.Time

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// startProcess starts a command in the machine, with what it writes appended
// to the log.
func startProcess(m *machine, cmd *exec.Cmd, log string) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if cmd.Stdout == nil {
		cmd.Stdout = file
	}
	if cmd.Stderr == nil {
		cmd.Stderr = file
	}
	started := time.Now()
	if err := m.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", cmd.Path, m.name, err)
	}
	p := &Process{Log: log, Started: started, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid is the process's number as this host counts.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end, and says how it did as exec.Cmd.Wait.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that has ended takes none, without error.
func (p *Process) Signal(signal os.Signal) {
	_ = p.cmd.Process.Signal(signal) // the only error is that it has ended
}

// Stop asks the process to end, kills it when it does not within ten seconds,
// and waits until it is gone.
func (p *Process) Stop() {
	p.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.Kill()
	}
}

// Kill kills the process and waits until it is gone. Its children live on.
func (p *Process) Kill() {
	p.Signal(unix.SIGKILL)
	<-p.done
}
