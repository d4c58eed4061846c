// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
)

const item = `{name: cloud, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ["*.azurecr.io"], defaultCacheDuration: 10m}`

func TestAConfigIsReadAsTheKubeletReadsIt(t *testing.T) {
	named := func(name string) string { return strings.Replace(item, "cloud", name, 1) }
	file := func(version string, items ...string) string {
		return "apiVersion: kubelet.config.k8s.io/" + version + "\nkind: CredentialProviderConfig\nproviders: [" + strings.Join(items, ", ") + "]\n"
	}
	for _, tt := range []struct {
		reason string
		files  map[string]string
		want   string // the names of the providers
	}{
		{"a file", map[string]string{"": file("v1", named("b"), named("a"))}, "b a"},
		{"of the second version", map[string]string{"": file("v1beta1", item)}, "cloud"},
		{"of the first", map[string]string{"": file("v1alpha1", item)}, "cloud"},
		{
			"in JSON", map[string]string{"": `{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [
				{"name": "json", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "matchImages": ["ghcr.io"], "defaultCacheDuration": "0s"}]}`}, "json",
		},
		{"with a field that is new", map[string]string{"": file("v1", strings.Replace(item, "{", "{new: {}, ", 1))}, "cloud"},
		{
			"a folder, by the names of the files, and nothing else in it",
			map[string]string{"2.yaml": file("v1", named("a")), "1.json": file("v1", named("b")), "3.yml": file("v1", named("c")), "notes.txt": "?", "d.yaml/x": "?"}, "b a c",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			providers, err := readConfig(writeConfig(t, tt.files))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, provider := range providers {
				names = append(names, provider.Name)
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("providers %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAWrongConfigIsRejectedWithWhatToWrite(t *testing.T) {
	const head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: "
	change := func(old, new string) string { return head + "[" + strings.Replace(item, old, new, 1) + "]" }
	for _, tt := range []struct {
		reason string
		files  map[string]string
		want   string
	}{
		{"nothing there", nil, "no such file or directory"},
		{"a folder without files", map[string]string{"notes.txt": ""}, "no .json, .yaml or .yml file is in the folder"},
		{"no YAML", map[string]string{"": "{"}, "yaml: line 1"},
		{
			"another kind", map[string]string{"": strings.Replace(head, "CredentialProviderConfig", "KubeletConfiguration", 1)},
			`kind "KubeletConfiguration" of apiVersion "kubelet.config.k8s.io/v1" must be CredentialProviderConfig of kubelet.config.k8s.io/v1, `,
		},
		{"another version", map[string]string{"": strings.Replace(head, "/v1", "/v2", 1)}, `of apiVersion "kubelet.config.k8s.io/v2" must be`},
		{"no provider", map[string]string{"": head + "[]"}, "providers must have at least one item"},
		{"no name", map[string]string{"": change("name: cloud, ", "")}, `provider "": name must be that of a file`},
		{"a path", map[string]string{"": change("cloud", "../cloud")}, `provider "../cloud": name must be that of a file`},
		{"the folder itself", map[string]string{"": change("cloud", ".")}, `provider ".": name must be that of a file`},
		{"the folder above", map[string]string{"": change("cloud", "..")}, `provider "..": name must be that of a file`},
		{"arguments in the name", map[string]string{"": change("cloud", "cloud get")}, `provider "cloud get": name must be that of a file`},
		{"a name twice", map[string]string{"a.yaml": head + "[" + item + "]", "b.yaml": head + "[" + item + "]"}, `provider "cloud": name must be there once`},
		{"no version of the API", map[string]string{"": change("apiVersion: credentialprovider.kubelet.k8s.io/v1, ", "")}, "apiVersion must be one of credentialprovider.kubelet.k8s.io/v1, "},
		{"no images", map[string]string{"": change(`"*.azurecr.io"`, "")}, "matchImages must have at least one item"},
		{"an image that is no URL", map[string]string{"": change("*.azurecr.io", "a b")}, `not "a b"`},
		{"no duration", map[string]string{"": change(", defaultCacheDuration: 10m", "")}, "defaultCacheDuration must be 0s or more"},
		{"a negative duration", map[string]string{"": change("10m", "-10m")}, "defaultCacheDuration must be 0s or more"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			_, err := New(Options{Config: writeConfig(t, tt.files), BinDir: t.TempDir()}, logr.Discard())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "read credential provider config: ") {
				t.Errorf("err = %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestEveryPluginMustBeThereAtTheStart(t *testing.T) {
	n := newNode(t)
	n.install(n.answering("there", ""), n.answering("cloud", ""))
	path := filepath.Join(n.options.BinDir, "cloud")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := New(n.options, logr.Discard()); err == nil || !strings.Contains(err.Error(), `find credential provider "cloud"`) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("err = %v", err)
	}
	write(t, path, "#!/bin/sh\n")
	if _, err := New(n.options, logr.Discard()); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("err = %v", err)
	}
}

func TestOptions(t *testing.T) {
	const both = "--image-credential-provider-config and --image-credential-provider-bin-dir must be set both, or neither"
	for _, tt := range []struct {
		reason  string
		options Options
		want    string
	}{
		{"no plugins", Options{}, ""},
		{"plugins", Options{Config: "/etc/providers.yaml", BinDir: "/opt/bin"}, ""},
		{"no folder", Options{Config: "/etc/providers.yaml"}, both},
		{"no configuration", Options{BinDir: "/opt/bin"}, both},
		{"a relative file", Options{Config: "providers.yaml", BinDir: "/opt/bin"}, `--image-credential-provider-config must be an absolute path, not "providers.yaml"`},
		{"a relative folder", Options{Config: "/etc/providers.yaml", BinDir: "bin"}, `--image-credential-provider-bin-dir must be an absolute path, not "bin"`},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			err := tt.options.Validate()
			if (err == nil) != (tt.want == "") || err != nil && err.Error() != tt.want {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
			if got := tt.options.Enabled(); err == nil && got != (tt.options.Config != "") {
				t.Errorf("enabled: %t", got)
			}
		})
	}
}

// writeConfig writes a file, whose name is "", or the files of a folder.
func writeConfig(t *testing.T, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	for name, text := range files {
		file := filepath.Join(path, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, file, text)
	}
	return path
}
