// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"
	"testing/fstest"
)

const source = `package hold

const Limit = 1

type Write struct{ Old int }

type Waiter interface{ Wait() }

func (w *Write) Check() {}

func Decide(w Write) {}
`

func TestCheck(t *testing.T) {
	wide := strings.Repeat("ä", maxColumns)
	for _, test := range []struct {
		reason, text string
		want         string // a part of the only problem; empty for none
	}{
		{"columns are characters, not bytes", wide, ""},
		{"a line of prose is too wide", wide + "ä", "docs/a.md:1: 121 columns"},
		{"so is the row of a table", "| a |\n|---|\n| " + wide + " |", "docs/a.md:3: 124 columns"},
		{"commands are source", "```sh\n" + wide + "x\n```", "docs/a.md:2: 121 columns"},
		{"what a program printed is as it is", "```console\n" + wide + "x\n```", ""},
		{"also in a block that names no language", "```\n" + wide + "x\n```", ""},
		{"after a block there is prose again", "```\n" + wide + "x\n```\n" + wide + "x", "docs/a.md:4: 121 columns"},
		{"a link to a file beside it", "[b](b.md)", ""},
		{"a link to a folder above it", "[code](../internal/hold)", ""},
		{"a link to what is gone", "[c](c.md)", "the link c.md leads nowhere"},
		{"a link by reference to what is gone", "[c][1]\n\n[1]: c.md", "docs/a.md:3: the link c.md leads nowhere"},
		{"a link out of the repository is not followed", "[x](https://example.com/c.md)", ""},
		{"a heading, with code and punctuation in it", "[x](b.md#a-write-is-rejected-failed-calling-webhook)", ""},
		{"a heading that was renamed", "[x](b.md#a-write)", "the link b.md#a-write leads nowhere"},
		{"a heading of the same file", "# One\n[x](#one) [y](#two)", "the link #two leads nowhere"},
		{"what looks like a heading in a block is none", "[x](#one)\n```sh\n# one\n```", "the link #one leads nowhere"},
		{"a file that is named in code", "`internal/hold/decide.go` in `internal/`", ""},
		{"a file that moved", "`internal/hold/verdict.go`", "there is no internal/hold/verdict.go"},
		{"a folder that moved", "`internal/gate/`", "there is no internal/gate/"},
		{"a file below the document's own folder", "`internal/init`", ""},
		{"no path of the repository", "`apps/v1`, `internal/*.go`, `/etc/containerd`, `docs/a.md:1`", ""},
		{"what a package exports", "`hold.Decide`, `hold.Write.Old`, `hold.Write.Check`, `hold.Waiter.Wait`, `hold.Limit`", ""},
		{"a function that was renamed", "`hold.Judge`", "there is no hold.Judge"},
		{"a field that was renamed", "`hold.Write.Stored`", "there is no hold.Write.Stored"},
		{"other packages, values of the chart and resources are not ours", "`errors.Is`, `agent.hostNetwork`, `hold.yaml`", ""},
		{"paths in a block are not looked at", "```sh\nls internal/gate [x](c.md)\n```", ""},
	} {
		root := fstest.MapFS{
			"docs/a.md":               {Data: []byte(test.text + "\n")},
			"docs/b.md":               {Data: []byte("## A write is rejected: `failed calling webhook`\n")},
			"docs/internal/init":      {},
			"internal/hold/decide.go": {Data: []byte(source)},
		}
		var out strings.Builder
		err := run(&out, root, []string{"docs/a.md"})
		problems := strings.Count(out.String(), "\n")
		switch {
		case test.want == "" && (problems > 0 || err != nil):
			t.Errorf("%s: found %s", test.reason, out.String())
		case test.want != "" && (problems != 1 || err == nil || !strings.Contains(out.String(), test.want)):
			t.Errorf("%s: found %q (%v), want only %q", test.reason, out.String(), err, test.want)
		}
	}
}

func TestRunFails(t *testing.T) {
	for reason, files := range map[string][]string{"without files": nil, "on a file that is gone": {"docs/gone.md"}} {
		if err := run(io.Discard, fstest.MapFS{}, files); err == nil {
			t.Errorf("succeeds %s", reason)
		}
	}
}
