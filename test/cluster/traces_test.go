// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

// traces are what a cluster consists of on its host. Each is identified by more
// than its name, because the next cluster has the same ones, and another test
// may start it any time.
type traces struct {
	dir string
	// processes are the command lines in the cluster's control group by number.
	processes map[int]string
	// namespaces are those of its processes that are not the host's.
	namespaces map[string]bool
	// folders are its own and those of its control groups.
	folders map[string]folder
	link    int
}

func lookFor(dir string) traces {
	name := filepath.Base(dir)
	t := traces{dir: dir, processes: map[int]string{}, namespaces: map[string]bool{}, folders: map[string]folder{}}
	host := namespacesOf(os.Getpid())
	for _, pid := range pids() {
		if !inGroup(pid, name+"/") {
			continue
		}
		t.processes[pid] = commandLine(pid)
		for namespace := range namespacesOf(pid) {
			if !host[namespace] {
				t.namespaces[namespace] = true
			}
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, _ := filepath.Glob(filepath.Join(root, name))
		for _, group := range groups {
			t.folders[group] = stat(group)
		}
	}
	t.folders[dir] = stat(dir)
	link, err := net.InterfaceByName(name)
	Expect(err).NotTo(HaveOccurred())
	t.link = link.Index
	return t
}

// gone says what is still there.
func (t traces) gone() error {
	var errs []error
	for pid, command := range t.processes {
		if commandLine(pid) == command {
			errs = append(errs, fmt.Errorf("process %d: %s", pid, command))
		}
	}
	for _, pid := range pids() {
		// The numbers of namespaces are used again, so those of other
		// clusters do not count; their groups are told apart below. Nor do
		// the dead count, which wait for the host's init.
		if commandLine(pid) == "" || inGroup(pid, "sluice") {
			continue
		}
		for namespace := range namespacesOf(pid) {
			if t.namespaces[namespace] {
				errs = append(errs, fmt.Errorf("namespace %s, of process %d", namespace, pid))
			}
		}
	}
	for path, old := range t.folders {
		if stat(path) == old {
			errs = append(errs, fmt.Errorf("folder %s", path))
		}
	}
	if link, err := net.InterfaceByIndex(t.link); err == nil {
		errs = append(errs, fmt.Errorf("interface %s", link.Name))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	errs = append(errs, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, t.dir+"/") || strings.Contains(line, "nsfs") && t.bound(line) {
			errs = append(errs, fmt.Errorf("mount %s", line))
		}
	}
	return errors.Join(errs...)
}

// bound reports whether a line of mountinfo keeps one of the namespaces.
func (t traces) bound(line string) bool {
	for namespace := range t.namespaces {
		if strings.Contains(line, namespace) {
			return true
		}
	}
	return false
}

func inGroup(pid int, prefix string) bool {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return bytes.Contains(groups, []byte(":/"+prefix))
}

func pids() (pids []int) {
	entries, err := os.ReadDir("/proc")
	Expect(err).NotTo(HaveOccurred())
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// commandLine is empty for what does not run: also for what nobody has yet
// asked how it ended.
func commandLine(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '}))
}

func namespacesOf(pid int) map[string]bool {
	namespaces := map[string]bool{}
	for _, kind := range []string{"mnt", "net", "pid"} {
		if namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			namespaces[namespace] = true
		}
	}
	return namespaces
}

// folder tells a folder from a later one of the same name.
type folder struct {
	inode uint64
	born  unix.StatxTimestamp
}

// stat returns nothing for what does not exist.
func stat(path string) folder {
	var stat unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &stat)
	if errors.Is(err, unix.ENOENT) {
		return folder{}
	}
	Expect(err).NotTo(HaveOccurred())
	return folder{inode: stat.Ino, born: stat.Btime}
}

// childOf returns the child that runs the program of that name.
func childOf(parent int, program string) int {
	for _, pid := range pids() {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		name := filepath.Base(strings.Fields(commandLine(pid) + " -")[0])
		if bytes.Contains(status, fmt.Appendf(nil, "PPid:\t%d\n", parent)) && name == program {
			return pid
		}
	}
	return 0
}
