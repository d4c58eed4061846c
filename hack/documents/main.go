// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command documents checks Markdown files: that they can be read in a terminal, and that what they
// name in the repository is there, be it a file, a heading or a name in Go code. It runs in the
// repository's root.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxColumns is how wide a line may be, in characters. What a program has printed is as
// wide as it is: a block with no language, or a console.
const maxColumns = 120

func main() {
	if err := run(os.Stdout, os.DirFS("."), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "documents:", err)
		os.Exit(1)
	}
}

// run prints what is wrong with the files, and fails if anything is.
func run(out io.Writer, root fs.FS, files []string) error {
	if len(files) == 0 {
		return errors.New("no files")
	}
	code, err := readPackages(root)
	if err != nil {
		return err
	}
	found := 0
	for _, name := range files {
		doc, err := read(root, name)
		if err != nil {
			return err
		}
		for _, problem := range doc.check(root, code) {
			found++
			fmt.Fprintln(out, problem)
		}
	}
	if found > 0 {
		return fmt.Errorf("%d problems", found)
	}
	return nil
}

// document is a Markdown file, its lines by what they are.
type document struct {
	name  string
	lines []line
}

type line struct {
	text string
	// source is code that somebody wrote, output what a program printed; neither is prose.
	source, output bool
}

func read(root fs.FS, name string) (document, error) {
	content, err := fs.ReadFile(root, name)
	if err != nil {
		return document{}, err
	}
	doc := document{name: name}
	var fenced, output bool
	for text := range strings.Lines(string(content)) {
		text = strings.TrimSuffix(text, "\n")
		language, fence := strings.CutPrefix(strings.TrimSpace(text), "```")
		switch {
		case fence && fenced:
			fenced = false
		case fence:
			fenced, output = true, language == "" || language == "console"
		}
		doc.lines = append(doc.lines, line{text: text, source: fenced && !output, output: fenced && output})
	}
	return doc, nil
}

var (
	inlineLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	linkTarget = regexp.MustCompile(`^\[[^\]]+\]: (\S+)`)
	codeSpan   = regexp.MustCompile("`([^`]+)`")
	// pathInCode is a path that is written out: no pattern, no placeholder, no URL.
	pathInCode = regexp.MustCompile(`^[a-z][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)+/?$`)
)

// check returns what is wrong, a line each.
func (d document) check(root fs.FS, code packages) []string {
	var problems []string
	for i, line := range d.lines {
		report := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("%s:%d: ", d.name, i+1)+fmt.Sprintf(format, args...))
		}
		if columns := utf8.RuneCountInString(line.text); columns > maxColumns && !line.output {
			report("%d columns: wrap prose, or make a paragraph of the table's cell", columns)
		}
		if line.source || line.output {
			continue
		}
		targets := inlineLink.FindAllStringSubmatch(line.text, -1)
		targets = append(targets, linkTarget.FindAllStringSubmatch(line.text, -1)...)
		for _, target := range targets {
			if !d.leads(root, target[1]) {
				report("the link %s leads nowhere", target[1])
			}
		}
		for _, span := range codeSpan.FindAllStringSubmatch(line.text, -1) {
			missing := isPath(root, span[1]) && !exists(root, span[1]) && !exists(root, path.Join(path.Dir(d.name), span[1]))
			if missing || code.lacks(span[1]) {
				report("there is no %s", span[1])
			}
		}
	}
	return problems
}

// leads reports whether a link leads to a file of the repository, and to a heading in it
// if it names one. Links out of the repository are not followed.
func (d document) leads(root fs.FS, target string) bool {
	if strings.Contains(target, ":") {
		return true
	}
	file, heading, _ := strings.Cut(target, "#")
	name := d.name
	if file != "" {
		name = path.Join(path.Dir(d.name), file)
	}
	if heading == "" {
		return exists(root, name)
	}
	linked, err := read(root, name)
	return err == nil && linked.hasHeading(heading)
}

// isPath reports whether a span of code names something below a folder of the root.
func isPath(root fs.FS, span string) bool {
	if !pathInCode.MatchString(span) {
		return false
	}
	folder, _, _ := strings.Cut(span, "/")
	info, err := fs.Stat(root, folder)
	return err == nil && info.IsDir()
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, path.Clean(name))
	return err == nil
}

// notInAnchor is what GitHub leaves out when it makes an anchor of a heading.
var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// hasHeading reports whether a heading has the anchor.
func (d document) hasHeading(anchor string) bool {
	for _, line := range d.lines {
		title := strings.TrimLeft(line.text, "#")
		if line.source || line.output || title == line.text {
			continue
		}
		slug := notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
		if strings.ReplaceAll(slug, " ", "-") == anchor {
			return true
		}
	}
	return false
}
