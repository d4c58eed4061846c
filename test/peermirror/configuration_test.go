// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/test/peermirror"
)

func TestWriteConfiguration(t *testing.T) {
	const mirror = "http://10.0.0.1:5000"
	for name, test := range map[string]struct {
		registries, targets []string
		resolveTags         bool
		existing, want      map[string]string
	}{
		"no registries": {
			targets: []string{mirror}, resolveTags: true,
			want: map[string]string{"_default/hosts.toml": `[host.'http://10.0.0.1:5000']
capabilities = ['pull', 'resolve']
dial_timeout = '200ms'`},
		},
		"docker.io is served elsewhere": {
			registries: []string{"https://docker.io", "https://ghcr.io"}, targets: []string{mirror},
			want: map[string]string{
				"docker.io/hosts.toml": `server = 'https://registry-1.docker.io'

[host.'http://10.0.0.1:5000']
capabilities = ['pull']
dial_timeout = '200ms'`,
				"ghcr.io/hosts.toml": `server = 'https://ghcr.io'

[host.'http://10.0.0.1:5000']
capabilities = ['pull']
dial_timeout = '200ms'`,
			},
		},
		"several targets, plain HTTP, a port": {
			registries: []string{"http://10.0.0.9:5000"}, targets: []string{mirror, "http://10.0.0.2:5000"}, resolveTags: true,
			want: map[string]string{"10.0.0.9:5000/hosts.toml": `server = 'http://10.0.0.9:5000'

[host.'http://10.0.0.1:5000']
capabilities = ['pull', 'resolve']
dial_timeout = '200ms'

[host.'http://10.0.0.2:5000']
capabilities = ['pull', 'resolve']
dial_timeout = '200ms'`},
		},
		"what was there is set aside": {
			targets:  []string{},
			existing: map[string]string{"quay.io/hosts.toml": "old"},
			want:     map[string]string{"_backup/quay.io/hosts.toml": "old", "_default/hosts.toml": ""},
		},
		"what an earlier run wrote is replaced": {
			targets:  []string{},
			existing: map[string]string{"_backup/quay.io/hosts.toml": "old", "ghcr.io/hosts.toml": "earlier"},
			want:     map[string]string{"_backup/quay.io/hosts.toml": "old", "_default/hosts.toml": ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "certs.d")
			for path, content := range test.existing {
				write(t, filepath.Join(dir, path), content)
			}
			if err := peermirror.WriteConfiguration(dir, test.registries, test.targets, test.resolveTags); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, read(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWriteConfigurationRejectsARegistryThatIsNoURL(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kept/hosts.toml"), "kept")
	if err := peermirror.WriteConfiguration(dir, []string{"docker.io"}, nil, true); err == nil {
		t.Error("docker.io without a scheme was accepted")
	}
	if got := read(t, dir); got["kept/hosts.toml"] != "kept" {
		t.Errorf("the rejected call left %v", got)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		relative, _ := filepath.Rel(dir, path)
		files[relative] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
