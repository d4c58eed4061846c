// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
)

// bound is how long the tests of one mutant may take; one that never ends is killed.
const bound = "5m"

// counts are of mutants. Those that do not compile are in neither.
type counts struct{ killed, survive int }

// test runs the tests of the package on one mutant after the other, and tells of each survivor at
// once: a package may take hours.
func test(ctx context.Context, folder string, mutants []mutant, survives func(place)) (c counts, err error) {
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return c, err
	}
	defer os.RemoveAll(dir)
	for _, m := range mutants {
		fails, compiles, err := try(ctx, dir, folder, m)
		if err != nil {
			return c, err
		}
		switch {
		case !fails:
			c.survive++
			survives(m.place)
		case compiles:
			c.killed++
		}
	}
	return c, nil
}

// try has the Go command read the mutant in the place of our file, which stays as it is.
func try(ctx context.Context, dir, folder string, m mutant) (fails, compiles bool, err error) {
	file, err := filepath.Abs(m.File)
	if err != nil {
		return false, false, err
	}
	source, overlay := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {file: source}})
	if err != nil {
		return false, false, err
	}
	if err := errors.Join(os.WriteFile(source, m.source, 0o600), os.WriteFile(overlay, replace, 0o600)); err != nil {
		return false, false, err
	}
	// Neither vet nor symbols: they take longer than most tests.
	said, err := exec.CommandContext(ctx, "go", "test", "-overlay="+overlay, "-vet=off", "-ldflags=-s -w", "-failfast",
		"-timeout="+bound, "./"+folder).CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return false, false, err
	}
	return err != nil, !bytes.Contains(said, []byte("[build failed]")), nil
}
