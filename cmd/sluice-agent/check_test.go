// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What is found on a node with containerd is tested in nodeagent/containerd.
func TestCheckPrintsWhatItFindsAndFails(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	scratch, certs := t.TempDir(), t.TempDir()
	kept := filepath.Join(scratch, "hosts", "of-a-pull")
	if err := os.MkdirAll(kept, 0o700); err != nil {
		t.Fatal(err)
	}
	options, err := parse([]string{"--check", "--containerd-address=/none.sock", "--scratch-path=" + scratch, "--registry-config-path=" + certs})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := check(t.Context(), options, &out); !errors.Is(err, errProblems) {
		t.Errorf("it ends with %v", err)
	}
	for _, line := range []string{
		`error    containerd +has no socket /none\.sock: set agent\.containerd\.socket`,
		`ok       scratch path +` + regexp.QuoteMeta(scratch) + `/check can be written`,
		`warning  mirror +no hosts\.toml below ` + regexp.QuoteMeta(certs) + ` names one`,
	} {
		if !regexp.MustCompile("(?m)^" + line).Match(out.Bytes()) {
			t.Errorf("no line %q in\n%s", line, out.String())
		}
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a file of the agent that runs is gone: %v", err)
	}
	if left, _ := os.ReadDir(scratch); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

func TestACheckInAPodTakesTheFlagsOfItsAgent(t *testing.T) {
	for _, tt := range []struct {
		reason, commandLine string
		want                []string
	}{
		{"the agent is the first process", "/sluice-agent\x00--node-name=n\x00--containerd-address=/run/k3s/containerd.sock\x00", []string{"--node-name=n", "--containerd-address=/run/k3s/containerd.sock"}},
		{"it has no flags", "/sluice-agent\x00", nil},
		{"on a node it is another", "/sbin/init\x00--node-name=n\x00", nil},
		{"a kernel's process has none", "", nil},
	} {
		file := filepath.Join(t.TempDir(), "cmdline")
		if err := os.WriteFile(file, []byte(tt.commandLine), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := agentArguments(file); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %s", tt.reason, strings.Join(got, " "))
		}
	}
	if got := agentArguments("/not/there"); got != nil {
		t.Errorf("without a first process: %q", got)
	}
}
