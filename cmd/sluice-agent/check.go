// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
)

// errProblems ends a check that has found errors, which it has printed.
var errProblems = errors.New("images do not come to this node as it is")

// check prints what the agent's look at its node finds. It needs no API server, and does not disturb an
// agent that runs.
func check(ctx context.Context, options Options, out io.Writer) error {
	settings := runtimeOptions(options)
	settings.MirrorStartTimeout = 0
	settings.ScratchPath = filepath.Join(options.ScratchPath, "check") // the agent's own files stay
	defer func() { _ = os.RemoveAll(settings.ScratchPath) }()
	containers, err := containerd.New(settings)
	if err != nil {
		return err
	}
	defer func() { _ = containers.Close() }()
	findings := containers.Examine(ctx)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", f.Severity, f.Subject, f.Message)
		if f.Severity == nodeagent.SeverityError {
			err = errProblems
		}
	}
	return errors.Join(table.Flush(), err)
}

// firstProcess is the command line of the first process, which in the agent's Pod is the agent.
const firstProcess = "/proc/1/cmdline"

// agentArguments are the arguments of a process if it is an agent, and otherwise none. So a check in the
// agent's Pod, where there is no shell to repeat them, looks at what the agent there was told.
func agentArguments(commandLine string) []string {
	text, err := os.ReadFile(commandLine)
	words := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	if err != nil || filepath.Base(words[0]) != "sluice-agent" {
		return nil
	}
	return words[1:]
}
