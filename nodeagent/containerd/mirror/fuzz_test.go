// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzFile reads any hosts.toml. What can be read says one thing only, and still says it after it was
// written to another folder: that is what containerd is given.
func FuzzFile(f *testing.F) {
	for _, text := range []string{
		"", "server = 'https://ghcr.io'\n[host.'http://10.0.0.1:30020']\ncapabilities = ['pull', 'resolve']\n",
		"ca = 'ca.crt'\n[host.'https://a']\nca = ['a.crt', '/b.crt']\nclient = [['c.crt', 'c.key'], ['d.pem', '']]\n[host.'https://a'.header]\nx-a = ['1', '2']\n",
		"[host]\n[host.'https://b']\nskip_verify = true\noverride_path = true\n[host.'https://a']\ndial_timeout = '5s'\n",
		"[host.'http://a']\n[host.'http://a'.rewrite]\n'^(.*)$' = 'x/$1'\n", "CA = 'a'\nca = 'b'\n", "[Host.'http://a']\n", "[[host]]\n",
		"host.'http://a'.ca = 'x'\n", "[host.'']\n", "[host.'http://a']\n[host.'http://a']\n", "x = 1979-05-27T07:32:00Z\ny = nan\n", "\xff", "ca = {a = 'b'}",
		"[host.\"http://a\\u0022\"]\nca=''\n", "[server]\nx = 1\n",
	} {
		f.Add(text)
	}
	equal := cmp.Options{cmp.AllowUnexported(file{}), cmpopts.EquateNaNs(), cmpopts.EquateEmpty()}
	f.Fuzz(func(t *testing.T, text string) {
		first, err := parseFile("/etc/containerd/certs.d/ghcr.io", []byte(text))
		if err != nil {
			return
		}
		again, err := parseFile("/etc/containerd/certs.d/ghcr.io", []byte(text))
		if diff := cmp.Diff(first, again, equal); err != nil || diff != "" {
			t.Fatalf("read twice it says something else: %v\n%s", err, diff)
		}
		for _, name := range first.names {
			first.mayResolve(name)
			first.rewrites(name)
		}
		written, err := first.marshal()
		if err != nil {
			t.Fatalf("it can be read and not written: %v", err)
		}
		back, err := parseFile("/run/sluice", written)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, written)
		}
		// containerd asks the hosts that have a table, and those alone are written.
		for name := range first.hosts {
			if !slices.Contains(first.names, name) {
				delete(first.hosts, name)
			}
		}
		if diff := cmp.Diff(first, back, equal); diff != "" {
			t.Fatalf("written elsewhere it says something else:\n%s\n%s", diff, written)
		}
	})
}
