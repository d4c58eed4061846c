// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// least has a mutant that survives, since of two equal numbers either is the least, one that the
// test kills, and one that does not compile.
const least = `package least

func least(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func join(a, b string) string { return a + b }
`

const leastTest = `package least

import "testing"

func TestLeast(t *testing.T) {
	if least(1, 2) != 1 || least(2, 1) != 1 {
		t.Fail()
	}
}
`

const boundary = `- file: least/least.go
  function: least
  mutator: CONDITIONALS_BOUNDARY
  line: 'if a «<» b {'
`

func TestRunAsksForTheSurvivorsAndNoOthers(t *testing.T) {
	const counts = "least: 3 mutants, 1 killed, 1 do not compile, 1 survive\n"
	const reason = "  reason: Of two that are equal either will do.\n"
	negation := strings.Replace(boundary, "BOUNDARY", "NEGATION", 1)
	for _, c := range []struct {
		what, list, prints string
		fails              bool
	}{
		{"the survivor is listed, and one of another package, which is not looked for", boundary + reason +
			strings.Replace(boundary, "least/", "most/", 1) + reason, counts, false},
		{"the survivor is not listed", "[]", "Survives and is not in list.yaml:\n" + boundary + counts, true},
		{"what is listed is killed", boundary + reason + negation + reason,
			"Is in list.yaml and does not survive:\n" + negation + counts, true},
		{"a reason is missing", boundary, "", true},
	} {
		t.Run(c.what, func(t *testing.T) {
			inModule(t, c.list)
			var out strings.Builder
			err := run(t.Context(), &out, "./gremlins", "list.yaml", []string{"least"})
			if out.String() != c.prints || (err != nil) != c.fails {
				t.Errorf("it fails with %v and prints\n%s\nwant failure %v and\n%s", err, &out, c.fails, c.prints)
			}
			if source, err := os.ReadFile("least/least.go"); err != nil || string(source) != least {
				t.Errorf("the source has changed (%v):\n%s", err, source)
			}
		})
	}
}

func TestRunFailsWhereGremlinsDoes(t *testing.T) {
	inModule(t, "[]")
	write(t, "gremlins", "#!/bin/sh\necho the tests fail; exit 1\n", 0o700)
	err := run(t.Context(), &strings.Builder{}, "./gremlins", "list.yaml", []string{"least"})
	if err == nil || !strings.Contains(err.Error(), "the tests fail") {
		t.Errorf("got %v", err)
	}
}

// inModule goes to a module of its own, with a gremlins that has found three mutants.
func inModule(t *testing.T, list string) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.Mkdir("least", 0o700); err != nil {
		t.Fatal(err)
	}
	mutation := func(kind string, line, column int) string {
		return fmt.Sprintf(`{"type": %q, "status": "NOT COVERED", "line": %d, "column": %d}`, kind, line, column)
	}
	report := fmt.Sprintf(`{"files": [{"file_name": "least.go", "mutations": [%s, %s, %s]}]}`,
		mutation("CONDITIONALS_BOUNDARY", 4, 7), mutation("CONDITIONALS_NEGATION", 4, 7), mutation("ARITHMETIC_BASE", 10, 42))
	write(t, "go.mod", "module example.com/m\n\ngo 1.26.0\n", 0o600)
	write(t, "least/least.go", least, 0o600)
	write(t, "least/least_test.go", leastTest, 0o600)
	write(t, "list.yaml", list, 0o600)
	write(t, "report.json", report, 0o600)
	write(t, "gremlins", "#!/bin/sh\nfor a; do case $a in --output=*) cp report.json \"${a#--output=}\";; esac; done\n", 0o700)
}

func write(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.FromSlash(name), []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestMutateReplacesOneToken(t *testing.T) {
	const source = "package x\n\nconst more = 1 + 2\n\nfunc (y) f(a, b int) bool { a++; return a <= b && a-b != -1 }\n"
	for _, c := range []struct {
		mutator       string
		line, column  int
		function, key string
		now           string // the line
	}{
		{"ARITHMETIC_BASE", 3, 16, "const", "const more = 1 «+» 2", "const more = 1 - 2"},
		{"INCREMENT_DECREMENT", 5, 30, "f", "a«++»; return", "a--; return"},
		{"CONDITIONALS_BOUNDARY", 5, 43, "f", "a «<=» b", "a < b"},
		{"CONDITIONALS_NEGATION", 5, 43, "f", "a «<=» b", "a > b"},
		{"INVERT_LOGICAL", 5, 48, "f", "b «&&» a", "b || a"},
		{"INVERT_NEGATIVES", 5, 58, "f", "!= «-»1", "!= +1"},
	} {
		m, err := mutate("x.go", []byte(source), c.mutator, c.line, c.column)
		if err != nil {
			t.Errorf("%s at %d:%d: %v", c.mutator, c.line, c.column, err)
			continue
		}
		if m.File != "x.go" || m.Function != c.function || m.Mutator != c.mutator || !strings.Contains(m.Line, c.key) {
			t.Errorf("%s at %d:%d is\n%s", c.mutator, c.line, c.column, m)
		}
		if was := strings.NewReplacer("«", "", "»", "").Replace(c.key); string(m.source) != strings.Replace(source, was, c.now, 1) {
			t.Errorf("%s at %d:%d makes\n%s", c.mutator, c.line, c.column, m.source)
		}
	}
	for reason, at := range map[string][2]int{"another token": {5, 30}, "no such line": {9, 1}, "no such column": {3, 90}} {
		if m, err := mutate("x.go", []byte(source), "INVERT_LOGICAL", at[0], at[1]); err == nil {
			t.Errorf("%s makes\n%s", reason, m.source)
		}
	}
}

// Lines that read the same in one function are told apart by their number alone.
func TestTheListCounts(t *testing.T) {
	at := func(line string) place { return place{File: "p/x.go", Line: line} }
	e := list{at("a"), at("b"), at("c"), at("c"), {File: "q/x.go", Line: "d"}}.in("p/")
	if !e.take(at("a")) || !e.take(at("b")) || e.take(at("a")) || e.take(at("e")) {
		t.Error("not each survivor was expected as often as it is listed")
	}
	if got := fmt.Sprint(e.left()); got != fmt.Sprint([]place{at("c"), at("c")}) {
		t.Errorf("left are %s", got)
	}
}
