// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRegistriesThatHaveADirectory(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{
		"docker.io", "_default", "registry_5000_", "10.0.0.1:5001",
		"_backup", // Spegel's copy of what was there before
		"a_b",     // no port
	} {
		writeHosts(t, first, dir, "")
	}
	writeHosts(t, second, "docker.io", "")
	if err := os.Symlink(filepath.Join(first, "docker.io"), filepath.Join(second, "linked.test")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Config{Roots: []string{"/not/there", first, second}}.Registries()
	want := []string{"10.0.0.1:5001", "_default", "a_b", "docker.io", "linked.test", "registry:5000"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := (Config{Roots: []string{filepath.Join(second, "README")}}).Registries(); err == nil {
		t.Error("a root that cannot be read is no error")
	}
}

func TestTheDirectoryForAllRegistriesIsReadAsOne(t *testing.T) {
	root := t.TempDir()
	writeHosts(t, root, Default, "[host.'http://a:1']\n")
	hosts, err := Config{Roots: []string{root}, Scratch: t.TempDir()}.Read(t.Context(), Default, nil)
	if err != nil || !slices.Equal(urls(hosts.Mirrors), []string{"http://a:1"}) {
		t.Errorf("%q, %v", urls(hosts.Mirrors), err)
	}
}

func TestWhyContainerdDoesNotAcceptAFile(t *testing.T) {
	for _, tt := range []struct{ reason, toml, want string }{
		{"a good one", "[host.'http://a:1']\n", ""},
		{"it does not parse", "server = 'https://registry.test'\n[host.\n", "line 2: toml: "},
		{"a time without a unit", "[host.'http://a:1']\ndial_timeout = '200'\n", "missing unit"},
		{"a capability that there is none", "[host.'http://a:1']\ncapabilities = ['fetch']\n", "unknown capability fetch"},
	} {
		root := t.TempDir()
		writeHosts(t, root, "registry.test", tt.toml)
		hosts, err := Config{Roots: []string{root}, Scratch: t.TempDir()}.Read(t.Context(), "registry.test", nil)
		if err != nil || (hosts.Rejected == nil) != (tt.want == "") || hosts.Rejected != nil && !strings.Contains(hosts.Rejected.Error(), tt.want) {
			t.Errorf("%s: rejected for %v, want %q (%v)", tt.reason, hosts.Rejected, tt.want, err)
		}
	}
}
