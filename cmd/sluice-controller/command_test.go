// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestUninstallAsksTheRefusalFileFirst(t *testing.T) {
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubeconfig := write("kubeconfig", `{"clusters": [{"name": "c", "cluster": {"server": "`+server.URL+`"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}`)
	for _, tt := range []struct {
		reason, file string
		asks         bool
		message      string
	}{
		{"no file is named", "", true, "delete webhook configuration"},
		{"there is no such file", filepath.Join(dir, "absent"), true, "delete webhook configuration"},
		{"it says why not", write("reason", "nobody uninstalls\n"), false, "nobody uninstalls"},
		{"it cannot be read, so that nobody knows", dir, false, "find out whether something speaks against it"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			requests.Store(0)
			err := runCommand(t.Context(), "uninstall", []string{"--kubeconfig=" + kubeconfig, "--refusal-file=" + tt.file, "--timeout=1s"})
			if err == nil || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("err = %v, want %s", err, tt.message)
			}
			if asked := requests.Load() > 0; asked != tt.asks {
				t.Errorf("the API server was asked: %t, want %t", asked, tt.asks)
			}
		})
	}
}
