// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/cgroup"
	"github.com/sluice-dev/sluice/test/cluster/internal/mount"
)

// A machine is a PID, a mount and a network namespace under one init: the
// control plane is one, and so is each node. Programs are started straight
// into it. When its init ends, and that ends with this process, the kernel
// kills all of them and drops mounts and network.
type machine struct {
	name string
	// cgroup holds all processes of the machine, in its group "system"; the
	// kubelet makes the groups of Pods beside that.
	cgroup string
	init   *exec.Cmd
	pidfd  *os.File
	stop   io.Closer
	exited chan struct{}
	once   sync.Once
}

// system is the control group of a machine's own processes. In cgroup v2 a
// group with processes cannot have others below it.
func (m *machine) system() string { return path.Join(m.cgroup, "system") }

func startMachine(bin Binaries, name, group string, mounts []mount.Mount) (_ *machine, err error) {
	m := &machine{name: name, cgroup: group, exited: make(chan struct{})}
	if err := cgroup.Create(m.system()); err != nil {
		return nil, fmt.Errorf("create control group of %s: %w", name, err)
	}
	m.init = exec.Command(filepath.Join(bin.ownDir, "init"))
	m.init.Stderr = os.Stderr
	m.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	stdin, err := m.init.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := m.init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.stop = stdin
	if err := m.spawn(m.init, func() error { return nil }); err != nil {
		return nil, fmt.Errorf("start init of %s: %w", name, err)
	}
	pidfd, err := unix.PidfdOpen(m.init.Process.Pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open init of %s: %w", name, err)
	}
	m.pidfd = os.NewFile(uintptr(pidfd), name)
	err = json.NewEncoder(stdin).Encode(mounts)
	if err == nil {
		_, err = bufio.NewReader(stdout).ReadString('\n')
	}
	go func() {
		_ = m.init.Wait() // killed or told to end: either way it is gone
		close(m.exited)
	}()
	if err != nil {
		m.kill()
		return nil, fmt.Errorf("set up %s (see its init's message): %w", name, err)
	}
	return m, nil
}

// start starts a program inside the machine.
func (m *machine) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.Env == nil {
		cmd.Env = environment()
	}
	return m.spawn(cmd, func() error {
		// A thread that shares its idea of root and working directory
		// with others cannot change mount namespaces.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare file system attributes: %w", err)
		}
		if err := unix.Setns(int(m.pidfd.Fd()), unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("enter %s: %w", m.name, err)
		}
		return nil
	})
}

// environment is this process's, without proxies: no machine reaches them.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return strings.HasSuffix(strings.ToLower(name), "_proxy")
	})
}

// spawn starts a program in the machine's control group, from a thread that
// enter prepares.
func (m *machine) spawn(cmd *exec.Cmd, enter func() error) error {
	// A terminal's interrupt is for the owner alone, who ends the rest.
	cmd.SysProcAttr.Setpgid = true
	return onOwnThread(func() error {
		if cgroup.Unified() {
			group, err := cgroup.Open(m.system())
			if err != nil {
				return err
			}
			defer func() { _ = group.Close() }()
			cmd.SysProcAttr.UseCgroupFD = true
			cmd.SysProcAttr.CgroupFD = int(group.Fd())
		} else if err := cgroup.AddThread(m.system()); err != nil {
			return err
		}
		if err := enter(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// onOwnThread calls f on a thread that ends afterwards, because its goroutine
// ends without unlocking it. Go starts no thread from a locked one, so that
// namespaces and control group of this one pass to what f starts alone. The
// main thread does not end with a goroutine, and is avoided.
func onOwnThread(f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			errs <- onOwnThread(f) // elsewhere, for this thread is taken
			runtime.UnlockOSThread()
			return
		}
		errs <- f()
	}()
	return <-errs
}

// kill ends the machine as a power failure does, and waits until the kernel
// has killed all of it.
func (m *machine) kill() {
	m.once.Do(func() {
		_ = m.stop.Close()
		_ = m.init.Process.Kill() // it may have ended by itself
		<-m.exited
		_ = m.pidfd.Close()
	})
}

// run runs a program inside the machine to its end and returns what it wrote
// on standard output.
func (m *machine) run(ctx context.Context, stdin io.Reader, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := m.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("run %s %q on %s: %w: %s", program, args, m.name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}
