// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command metrics prints docs/metrics.md: every metric that the packages given make
// with prometheus.New…, as their source says. It fails on a metric that it cannot read.
package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const preamble = `# Metrics

Generated from the code by ` + "`make generate`" + `. Both binaries serve these at
` + "`--metrics-bind-address`" + `, beside those of Go, the process and controller-runtime
(` + "`controller_runtime_webhook_latency_seconds`" + ` times the webhooks). No label names an image, a node or
an object.
`

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "metrics:", err)
		os.Exit(1)
	}
}

// metric is one line of the page.
type metric struct {
	name, kind, labels, help string
}

// run prints a table for each "TITLE=FOLDER[,FOLDER…]".
func run(out io.Writer, tables []string) error {
	fmt.Fprint(out, preamble)
	for _, table := range tables {
		title, folders, found := strings.Cut(table, "=")
		if !found {
			return fmt.Errorf("argument %q: want TITLE=FOLDER,FOLDER", table)
		}
		var metrics []metric
		for folder := range strings.SplitSeq(folders, ",") {
			some, err := read(folder)
			if err != nil {
				return err
			}
			metrics = append(metrics, some...)
		}
		if len(metrics) == 0 {
			return fmt.Errorf("no metrics in %s", folders)
		}
		slices.SortFunc(metrics, func(a, b metric) int { return strings.Compare(a.name, b.name) })
		fmt.Fprintf(out, "\n## %s\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n", title)
		for _, m := range metrics {
			fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", m.name, m.kind, m.labels, m.help)
		}
	}
	return nil
}

// read finds the metrics in the Go files of a folder and those below it.
func read(folder string) (metrics []metric, err error) {
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		var errs []error
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			if kind := kindOf(call.Fun); kind != "" {
				m, err := describe(call, kind)
				metrics = append(metrics, m)
				errs = append(errs, err)
			}
			return true
		})
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		return nil
	})
	return metrics, err
}

// kindOf is "counter" for prometheus.NewCounter and prometheus.NewCounterVec, and so on.
func kindOf(function ast.Expr) string {
	selector, ok := function.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if pkg, ok := selector.X.(*ast.Ident); !ok || pkg.Name != "prometheus" {
		return ""
	}
	kind := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(selector.Sel.Name, "New"), "Vec"))
	if !slices.Contains([]string{"counter", "gauge", "histogram", "summary"}, kind) {
		return ""
	}
	return kind
}

func describe(call *ast.CallExpr, kind string) (metric, error) {
	m := metric{kind: kind, labels: "–"}
	options, ok := call.Args[0].(*ast.CompositeLit)
	if !ok {
		return m, errors.New("the options of a metric are not written where it is made")
	}
	for _, element := range options.Elts {
		field := element.(*ast.KeyValueExpr)
		for name, into := range map[string]*string{"Name": &m.name, "Help": &m.help} {
			if field.Key.(*ast.Ident).Name != name {
				continue
			}
			text, err := literal(field.Value)
			if err != nil {
				return m, fmt.Errorf("%s of a metric: %w", name, err)
			}
			*into = text
		}
	}
	if m.name == "" || m.help == "" {
		return m, errors.New("a metric lacks its Name or its Help")
	}
	if len(call.Args) == 1 {
		return m, nil
	}
	labels, ok := call.Args[1].(*ast.CompositeLit)
	if !ok {
		return m, fmt.Errorf("the labels of %s are not written where it is made", m.name)
	}
	names := make([]string, len(labels.Elts))
	for i, element := range labels.Elts {
		name, err := literal(element)
		if err != nil {
			return m, fmt.Errorf("label of %s: %w", m.name, err)
		}
		names[i] = "`" + name + "`"
	}
	m.labels = strings.Join(names, ", ")
	return m, nil
}

// literal is the value of a string, or of several that are added.
func literal(expr ast.Expr) (string, error) {
	switch expr := expr.(type) {
	case *ast.BasicLit:
		return strconv.Unquote(expr.Value)
	case *ast.BinaryExpr:
		left, err := literal(expr.X)
		if err != nil {
			return "", err
		}
		right, err := literal(expr.Y)
		return left + right, err
	}
	return "", fmt.Errorf("%T is no string literal", expr)
}
