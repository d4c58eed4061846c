// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A mutant whose tests take this many times as long as those of the program, and at least
// leastBound, counts as killed: it may never end.
const (
	slowdown   = 5
	leastBound = 30 * time.Second
)

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
	began := time.Now()
	if said, err := exec.CommandContext(ctx, "go", "test", "-count=1", "-vet=off", "./"+folder).CombinedOutput(); err != nil {
		return c, fmt.Errorf("test the program itself: %w\n%s", err, said)
	}
	bound := max(leastBound, slowdown*time.Since(began))
	for _, m := range mutants {
		fails, compiles, err := try(ctx, dir, folder, m, bound)
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
func try(ctx context.Context, dir, folder string, m mutant, bound time.Duration) (fails, compiles bool, err error) {
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
		"-timeout="+bound.String(), "./"+folder).CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return false, false, err
	}
	return err != nil, !bytes.Contains(said, []byte("[build failed]")), nil
}
