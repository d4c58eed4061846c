// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Init is the first process of a machine: of a PID, a mount and a network
// namespace of its own. It mounts what it is told, then only reaps orphans,
// and ends when its standard input does. That is when its owner closes the
// pipe, or ends in whatever way. The kernel then kills every process of the
// machine, and with them go its mounts and its network.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/mount"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

func run() error {
	var mounts []mount.Mount
	stdin := json.NewDecoder(os.Stdin)
	if err := stdin.Decode(&mounts); err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	// A descriptor of the network namespace where it was created would keep
	// that alive; Go opens none, and none is inherited.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range mounts {
		if err := show(m); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
		}
	}
	// As on other nodes: a hostPath volume may ask to see later mounts as well.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	go reap()
	// The owner waits for this line.
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func show(m mount.Mount) error {
	if m.Loop {
		device, err := attach(m.Source)
		if err != nil {
			return fmt.Errorf("attach to a loop device: %w", err)
		}
		defer func() { _ = device.Close() }()
		if err := os.MkdirAll(m.Target, 0o755); err != nil {
			return err
		}
		m.Source = device.Name()
	}
	return unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data)
}

// attach makes a file a loop device, which ends when it is closed and mounted nowhere.
func attach(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) { // another machine was faster
			return nil, err
		}
	}
}

func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
