// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgroup makes, fills and removes control groups of the same path in
// every hierarchy: in the one of cgroup v2, or in all those of v1 (with the
// controller-less v2 one beside them, where there is one).
package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is where the hierarchies are mounted.
const Root = "/sys/fs/cgroup"

// Unified reports whether this machine has cgroup v2 alone.
func Unified() bool {
	var stat unix.Statfs_t
	return unix.Statfs(Root, &stat) == nil && stat.Type == unix.CGROUP2_SUPER_MAGIC
}

// hierarchies are the mount points: one for v2; for v1 one per controller set,
// each once (cpu and cpuacct may be links to cpu,cpuacct).
func hierarchies() ([]string, error) {
	if Unified() {
		return []string{Root}, nil
	}
	entries, err := os.ReadDir(Root)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, entry := range entries {
		if entry.IsDir() {
			dirs = append(dirs, filepath.Join(Root, entry.Name()))
		}
	}
	return dirs, nil
}

// Create makes the group, with all its parents.
func Create(path string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			return err
		}
	}
	if Unified() {
		return delegate(path)
	}
	return copyCpuset(path)
}

// delegated are the controllers that a kubelet asks for.
var delegated = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}

// delegate hands controllers down to the group, level by level.
func delegate(path string) error {
	available, err := os.ReadFile(filepath.Join(Root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var enable []string
	for controller := range strings.FieldsSeq(string(available)) {
		if slices.Contains(delegated, controller) {
			enable = append(enable, "+"+controller)
		}
	}
	dir := Root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0); err != nil {
			return err
		}
		dir = filepath.Join(dir, part)
	}
	return nil
}

// copyCpuset gives each level its parent's processors: in v1 a new group has
// none, and takes no process.
func copyCpuset(path string) error {
	dir := filepath.Join(Root, "cpuset")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, part, file), value, 0); err != nil {
				return err
			}
		}
		dir = filepath.Join(dir, part)
	}
	return nil
}

// AddThread moves the calling thread into the group, so that the processes it
// starts begin there. In v2 threads cannot be moved; see Open.
func AddThread(path string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		file := filepath.Join(dir, path, "tasks")
		if _, err := os.Stat(file); err != nil {
			continue // the v2 hierarchy beside those of v1
		}
		if err := os.WriteFile(file, strconv.AppendInt(nil, int64(unix.Gettid()), 10), 0); err != nil {
			return err
		}
	}
	return nil
}

// Open opens the group's folder of v2, in which a process can be started.
func Open(path string) (*os.File, error) {
	return os.Open(filepath.Join(Root, path))
}

// Remove kills what runs in the group and below, and removes it. It tries
// until the context ends, for the kernel takes a moment to bury the dead. The
// owner is spared: it may have had a thread in the group (see AddThread) that
// is about to end.
func Remove(ctx context.Context, path string, owner int) error {
	for {
		err := remove(path, owner)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func remove(path string, owner int) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeTree(filepath.Join(dir, path), owner))
	}
	return errors.Join(errs...)
}

// removeTree removes folders from the bottom up; the files in them are the
// kernel's.
func removeTree(dir string, owner int) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name()), owner); err != nil {
				return err
			}
		}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for field := range bytes.FieldsSeq(procs) {
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 0 && pid != owner {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
