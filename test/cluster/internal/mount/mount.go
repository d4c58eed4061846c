// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mount is what a machine's owner tells its init to mount.
package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Mount has the arguments of mount(2).
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
}

// Bind shows source at target.
func Bind(source, target string) Mount {
	return Mount{Source: source, Target: target, Flags: unix.MS_BIND | unix.MS_REC}
}

// Overlay shows target with what upper has besides. Work is an empty folder on
// upper's file system.
func Overlay(target, upper, work string) Mount {
	return Mount{
		Source: "overlay", Target: target, Type: "overlay",
		Data: fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", target, upper, work),
	}
}

// Proc shows the processes of the machine's own PID namespace.
func Proc() Mount {
	return Mount{Source: "proc", Target: "/proc", Type: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}
}
