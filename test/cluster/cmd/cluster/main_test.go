// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The page has the versions that the tests run, and so have the requirements of the guide.
func TestDocumentsSayWhatIsRun(t *testing.T) {
	var table strings.Builder
	if err := versions(t.Context(), &table); err != nil {
		t.Fatal(err)
	}
	page := read(t, "compatibility.md")
	if !strings.Contains(page, "\n\n"+table.String()+"\n") {
		t.Errorf("docs/compatibility.md lacks this table:\n%s", table.String())
	}

	guide := read(t, "install.md")
	for _, program := range []string{"Kubernetes", "containerd", "Helm", "cert-manager"} {
		run := regexp.MustCompile(`(?m)^\| ` + program + ` \| (\d+\.\d+)\.`).FindStringSubmatch(table.String())
		tested := regexp.MustCompile(`(?m)^\| ` + program + `[^|]*\|[^|]*\| ([\d.]+) \|`).FindStringSubmatch(guide)
		if run == nil || tested == nil || run[1] != tested[1] {
			t.Errorf("docs/install.md says that %s was tested in %q, want that of %q", program, tested, run)
		}
	}
}

func read(t *testing.T, document string) string {
	t.Helper()
	text, err := os.ReadFile("../../../../docs/" + document)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
