// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A shell makes of what the demo prints the very arguments that the demo passed.
func TestCommandsCanBePasted(t *testing.T) {
	for reason, args := range map[string][]string{
		"words of a usual command stay as they are": {"set", "image", "deployment/demo", "c0=registry.sluice.test/demo/app:v2"},
		"brackets and quotes of a JSON patch":       {"patch", "imageprefetch", sampleName, "--type=json", "-p", addImage(nextImage)},
		"a single quote within single quotes":       {"annotate", "deployment/demo", "note=it's held"},
		"no word at all":                            {"label", ""},
		"what a shell would expand":                 {"$HOME", "~", "*", "a;b", "`date`", "#", "!1", "{a,b}", "a\nb"},
	} {
		line := commandLine(args...)
		script := "kubectl() { printf '%s\\0' \"$@\"; }\n" + line
		got, err := exec.Command("sh", "-c", script).Output()
		if err != nil {
			t.Fatalf("%s: sh does not take %s: %v", reason, line, err)
		}
		if words := strings.Split(strings.TrimSuffix(string(got), "\x00"), "\x00"); !slices.Equal(words, args) {
			t.Errorf("%s: a shell makes %q of %s", reason, words, line)
		}
	}
	if line := commandLine("get", "deployments", "-L", "sluice.dev/hold"); strings.Contains(line, "'") {
		t.Errorf("quoted without need: %s", line)
	}
}
