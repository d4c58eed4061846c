// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cluster ends with the process that started it. So a command that leaves one
// running needs a supervisor: another process, usually the same program with
// other arguments, which Detach starts and Down ends, and which calls
// Supervise. They meet in a folder.
const (
	lockFile = "supervisor.pid" // locked while the supervisor lives
	logFile  = "supervisor.log" // what the supervisor writes

	// readyFD is the pipe through which it tells Detach that it is ready,
	// open if the variable is set.
	readyFD       = 3
	readyVariable = "SLUICE_SUPERVISOR_DETACHED"
)

// Detach starts a program as the supervisor of dir, copies what it writes to
// out until it is ready, and leaves it running then. The program's standard
// output and error go to supervisor.log in dir. When ctx ends first, the
// program is asked to end, and waited for.
func Detach(ctx context.Context, dir string, out io.Writer, program string, args ...string) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, logFile))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ready.Close() }()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{tell} // becomes readyFD
	cmd.Env = append(os.Environ(), readyVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = tell.Close()
	if err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	told := make(chan bool, 1)
	go func() {
		message, _ := io.ReadAll(ready)
		told <- len(message) > 0
	}()
	isReady, err := follow(ctx, log.Name(), out, told, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	if isReady {
		return errors.Join(err, cmd.Process.Release())
	}
	if waitErr := cmd.Wait(); waitErr != nil {
		return errors.Join(err, fmt.Errorf("supervisor: %w", waitErr))
	}
	return errors.Join(err, errors.New("supervisor ended before it was ready"))
}

// follow copies a growing file until told, which says whether all went well.
func follow(ctx context.Context, file string, out io.Writer, told <-chan bool, stop func()) (ready bool, err error) {
	const interval = 50 * time.Millisecond
	log, err := os.Open(file)
	if err != nil {
		stop()
		return false, err
	}
	defer func() { _ = log.Close() }()
	done := ctx.Done()
	for {
		select {
		case ready = <-told:
			_, err = io.Copy(out, log)
			return ready, errors.Join(err, ctx.Err())
		case <-done:
			stop()
			done = nil // wait for the end
		case <-time.After(interval):
			if _, err := io.Copy(out, log); err != nil {
				stop()
				return false, err
			}
		}
	}
}

// Supervise makes this process the supervisor of dir, until it ends. The
// context that it returns ends when somebody calls Down, or interrupts the
// process; ready is to be called when Detach shall return.
func Supervise(parent context.Context, dir string) (ctx context.Context, ready func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	// Not an os.File, which is closed when nothing refers to it any more.
	lock, err := unix.Open(filepath.Join(dir, lockFile), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("open lock in %s: %w", dir, err)
	}
	if err := unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = unix.Close(lock)
		return nil, nil, fmt.Errorf("a cluster is up already in %s: take it down first", dir)
	}
	err = unix.Ftruncate(lock, 0)
	if err == nil {
		_, err = unix.Write(lock, strconv.AppendInt(nil, int64(os.Getpid()), 10))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("write lock in %s: %w", dir, err)
	}
	ready = func() {}
	if os.Getenv(readyVariable) != "" {
		unix.CloseOnExec(readyFD) // or the cluster's programs would hold it
		ready = func() {
			_, _ = unix.Write(readyFD, []byte("ready\n")) // Detach may have given up
			_ = unix.Close(readyFD)
		}
	}
	ctx, _ = signal.NotifyContext(parent, unix.SIGTERM, unix.SIGINT) // for good
	return ctx, ready, nil
}

// Down asks the supervisor of dir to end and waits until it has. It does
// nothing when there is none.
func Down(ctx context.Context, dir string) error {
	file := filepath.Join(dir, lockFile)
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	probe, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = probe.Close() }()
	if unix.Flock(int(probe.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			return fmt.Errorf("ask supervisor %d to end: %w", pid, err)
		}
		unlock, err := lock(ctx, file)
		if err != nil {
			return err
		}
		defer unlock()
	}
	return os.Remove(file)
}
