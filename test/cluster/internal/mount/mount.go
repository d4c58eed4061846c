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
	// Loop: Source is a file with a file system. Target is made if it is not there.
	Loop bool
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

// Loop shows the ext4 file system in a file. The kernel lets go of the file when the last machine
// that shows it has ended.
func Loop(file, target string) Mount {
	return Mount{Source: file, Target: target, Type: "ext4", Data: "noinit_itable", Loop: true}
}
