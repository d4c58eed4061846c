// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const modfile = "../../tools/vulncheck/go.mod"

// planted is a vulnerability of the standard library, in the database of this test alone.
const planted = `{"schema_version": "1.3.1", "id": "GO-0000-0001", "modified": "2026-01-02T00:00:00Z", "published": "2026-01-01T00:00:00Z",
	"summary": "Planted in strings", "affected": [{"package": {"name": "stdlib", "ecosystem": "Go"},
	"ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}]}], "ecosystem_specific": {"imports": [{"path": "strings", "symbols": ["Title"]}]}}]}`

func files(t *testing.T, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPlantedVulnerability(t *testing.T) {
	db := files(t, map[string]string{
		"index/db.json":        `{"modified": "2026-01-02T00:00:00Z"}`,
		"index/modules.json":   `[{"path": "stdlib", "vulns": [{"id": "GO-0000-0001", "modified": "2026-01-02T00:00:00Z"}]}]`,
		"ID/GO-0000-0001.json": planted,
	})
	code := func(body string) string {
		return files(t, map[string]string{"go.mod": "module example.com/a\n\ngo 1.26\n", "main.go": "package main\n\nimport (\n\t\"fmt\"\n\t\"strings\"\n)\n\nfunc main() { fmt.Println(" + body + ") }\n"})
	}
	for _, tt := range []struct {
		reason, body, accepted, wantOut, wantErr string
	}{
		{"it is called", `strings.Title("a")`, "{}", "", "GO-0000-0001 Planted in strings: strings.Title of stdlib"},
		{"it is called, and that is accepted", `strings.Title("a")`, "GO-0000-0001: text of ours alone", "accepted: text of ours alone", ""},
		{"its package is imported", `strings.ToLower("a")`, "{}", "checked: 0 known", ""},
		{"it is accepted and gone", `strings.ToLower("a")`, "GO-0000-0001: text of ours alone", "", "GO-0000-0001 is not called any more"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			accepted := filepath.Join(files(t, map[string]string{"accepted.yaml": tt.accepted}), "accepted.yaml")
			var out strings.Builder
			err := run(t.Context(), &out, "file://"+db, accepted, modfile, code(tt.body))
			if (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("err = %v, want %q", err, tt.wantErr)
			}
			if !strings.Contains(out.String(), tt.wantOut) {
				t.Errorf("printed %q, want %q", out.String(), tt.wantOut)
			}
		})
	}
}

func TestDatabaseOutOfReachIsNotClean(t *testing.T) {
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, db := range []string{broken.URL, gone.URL, "file:///does/not/exist"} {
		var out strings.Builder
		if err := run(t.Context(), &out, db, "accepted.yaml", modfile, "."); err != nil {
			t.Errorf("%s: %v", db, err)
		}
		if !strings.Contains(out.String(), "NOT CHECKED") || strings.Contains(out.String(), "checked:") {
			t.Errorf("%s: printed %q", db, out.String())
		}
	}
}
