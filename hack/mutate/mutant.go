// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strings"
)

// place is where a mutant is, in words that hold when lines come or go elsewhere.
type place struct {
	File     string `json:"file"`
	Function string `json:"function"`
	Mutator  string `json:"mutator"`
	// Line is the line's text, and in brackets « » what is replaced.
	Line string `json:"line"`
}

// String is the place as the list has it.
func (p place) String() string {
	return fmt.Sprintf("- file: %s\n  function: %s\n  mutator: %s\n  line: '%s'\n", p.File, p.Function, p.Mutator,
		strings.ReplaceAll(p.Line, "'", "''"))
}

// mutant is a file that differs from ours in one token.
type mutant struct {
	place
	source []byte
}

// replacements are those of gremlins, by its mutators.
var replacements = map[string]map[string]string{
	"ARITHMETIC_BASE":       {"+": "-", "-": "+", "*": "/", "/": "*", "%": "*"},
	"CONDITIONALS_BOUNDARY": {"<": "<=", "<=": "<", ">": ">=", ">=": ">"},
	"CONDITIONALS_NEGATION": {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"},
	"INCREMENT_DECREMENT":   {"++": "--", "--": "++"},
	"INVERT_ASSIGNMENTS":    {"+=": "-=", "-=": "+=", "*=": "/=", "/=": "*="},
	"INVERT_LOGICAL":        {"&&": "||", "||": "&&"},
	"INVERT_LOOPCTRL":       {"break": "continue", "continue": "break"},
	"INVERT_NEGATIVES":      {"-": "+"},
}

// read makes mutants of the report of gremlins, which names files from the folder on.
func read(report []byte, source func(file string) ([]byte, error), folder string) ([]mutant, error) {
	var found struct {
		Files []struct {
			Name      string `json:"file_name"`
			Mutations []struct {
				Type         string
				Line, Column int
			}
		}
	}
	if err := json.Unmarshal(report, &found); err != nil {
		return nil, fmt.Errorf("read the report of gremlins: %w", err)
	}
	var mutants []mutant
	for _, file := range found.Files {
		text, err := source(file.Name)
		if err != nil {
			return nil, err
		}
		for _, m := range file.Mutations {
			made, err := mutate(path.Join(folder, file.Name), text, m.Type, m.Line, m.Column)
			if err != nil {
				return nil, err
			}
			mutants = append(mutants, made)
		}
	}
	return mutants, nil
}

// mutate replaces the token at a line and column, which count from 1, the column in bytes.
func mutate(file string, source []byte, mutator string, line, column int) (mutant, error) {
	fail := func(why string) (mutant, error) {
		return mutant{}, fmt.Errorf("%s at %s:%d:%d: %s", mutator, file, line, column, why)
	}
	lines := bytes.SplitAfter(source, []byte("\n"))
	if line < 1 || line > len(lines) || column < 1 || column > len(lines[line-1]) {
		return fail("no such place")
	}
	before, after := lines[line-1][:column-1], lines[line-1][column-1:]
	old := ""
	for candidate := range replacements[mutator] {
		if len(candidate) > len(old) && bytes.HasPrefix(after, []byte(candidate)) {
			old = candidate
		}
	}
	if old == "" {
		return fail("no token of this mutator")
	}
	after = after[len(old):]
	function, err := functionAt(source, line)
	if err != nil {
		return fail(err.Error())
	}
	broken := slices.Concat(before, []byte(replacements[mutator][old]), after)
	return mutant{
		place: place{File: file, Function: function, Mutator: mutator,
			Line: strings.TrimSpace(string(before) + "«" + old + "»" + string(after))},
		source: slices.Concat(bytes.Join(lines[:line-1], nil), broken, bytes.Join(lines[line:], nil)),
	}, nil
}

// functionAt names the function or method around a line, or what is declared there.
func functionAt(source []byte, line int) (string, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "", source, parser.SkipObjectResolution)
	if err != nil {
		return "", err
	}
	for _, declared := range file.Decls {
		if set.Position(declared.Pos()).Line > line || set.Position(declared.End()).Line < line {
			continue
		}
		switch declared := declared.(type) {
		case *ast.FuncDecl:
			return declared.Name.Name, nil
		case *ast.GenDecl:
			return declared.Tok.String(), nil
		}
	}
	return "", fmt.Errorf("no declaration")
}
