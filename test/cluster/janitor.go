// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/sluice-dev/sluice/test/cluster/internal/claim"
)

// janitor is the process that outlives this one for as long as it takes to
// leave the host as it was.
type janitor struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startJanitor(bin Binaries) (*janitor, claim.Claim, error) {
	var c claim.Claim
	cmd := exec.Command(filepath.Join(bin.ownDir, "janitor"))
	// The go command waits for whoever has its standard error, so a test run
	// that was killed does not return before all is clean.
	cmd.Stderr = os.Stderr
	// Of no session and group of ours, it survives what ends those.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, c, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, c, err
	}
	if err := cmd.Start(); err != nil {
		return nil, c, fmt.Errorf("start janitor: %w", err)
	}
	j := &janitor{cmd: cmd, stdin: stdin}
	if err := json.NewDecoder(stdout).Decode(&c); err != nil {
		_ = j.stop()
		return nil, c, fmt.Errorf("claim a network (see the janitor's message): %w", err)
	}
	return j, c, nil
}

// stop waits until the janitor has removed everything.
func (j *janitor) stop() error {
	_ = j.stdin.Close()
	if err := j.cmd.Wait(); err != nil {
		return fmt.Errorf("remove the cluster (see the janitor's message): %w", err)
	}
	return nil
}
