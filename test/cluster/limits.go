// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// inotifyInstances is what a few clusters of a few nodes need: kubelets watch files.
// The usual limit, 128 for all processes of a user, is reached by two clusters.
const (
	inotifyFile      = "/proc/sys/fs/inotify/max_user_instances"
	inotifyInstances = 1024
)

// raiseLimits raises a limit of the host that a cluster would run into. It is the one
// thing that outlives a cluster, until the host restarts: another may rely on it.
func raiseLimits() error {
	content, err := os.ReadFile(inotifyFile)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || limit >= inotifyInstances {
		return err
	}
	if err := os.WriteFile(inotifyFile, []byte(strconv.Itoa(inotifyInstances)), 0o644); err != nil {
		return fmt.Errorf("raise the limit of inotify instances: %w", err)
	}
	return nil
}
