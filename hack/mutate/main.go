// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mutate breaks packages in one place at a time and runs their tests, which are to fail
// each time. What survives must be in survivors.yaml with the reason, and nothing else may be.
//
// gremlins says where the mutants are. It would test those in covered statements only, and
// conditions of a case are in none; so here each is tested, covered or not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

func main() {
	gremlins := flag.String("gremlins", "bin/gremlins", "the program that finds the mutants")
	list := flag.String("list", "hack/mutate/survivors.yaml", "the mutants that may survive, each with its reason")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *gremlins, *list, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// run tests the mutants of each package, a folder below the current one, and fails unless those
// that survive are the listed ones.
func run(ctx context.Context, out io.Writer, gremlins, list string, packages []string) error {
	if len(packages) == 0 {
		return errors.New("no packages")
	}
	content, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	listed, err := parse(content)
	if err != nil {
		return fmt.Errorf("read %s: %w", list, err)
	}
	wrong := 0
	for _, folder := range packages {
		mutants, err := find(ctx, gremlins, folder)
		if err != nil {
			return fmt.Errorf("find the mutants of %s: %w", folder, err)
		}
		expected := listed.in(folder)
		count, err := test(ctx, folder, mutants, func(p place) {
			if !expected.take(p) {
				wrong++
				fmt.Fprintf(out, "Survives and is not in %s:\n%s", list, p)
			}
		})
		if err != nil {
			return fmt.Errorf("test the mutants of %s: %w", folder, err)
		}
		for _, p := range expected.left() {
			wrong++
			fmt.Fprintf(out, "Is in %s and does not survive:\n%s", list, p)
		}
		fmt.Fprintf(out, "%s: %d mutants, %d killed, %d do not compile, %d survive\n",
			folder, len(mutants), count.killed, len(mutants)-count.killed-count.survive, count.survive)
	}
	if wrong > 0 {
		return fmt.Errorf("%d survivors unlisted, or listed for nothing", wrong)
	}
	return nil
}

// find has gremlins list the mutants, and reads where they are. gremlins fails when the tests
// do.
func find(ctx context.Context, gremlins, folder string) ([]mutant, error) {
	report, err := os.CreateTemp("", "mutants-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(report.Name())
	if err := report.Close(); err != nil {
		return nil, err
	}
	if said, err := exec.CommandContext(ctx, gremlins, "unleash", "--dry-run", "--workers=1", "--invert-logical",
		"--invert-loopctrl", "--invert-assignments", "--output="+report.Name(), "./"+folder).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	content, err := os.ReadFile(report.Name())
	if err != nil {
		return nil, err
	}
	return read(content, func(file string) ([]byte, error) { return os.ReadFile(filepath.Join(folder, file)) }, folder)
}
