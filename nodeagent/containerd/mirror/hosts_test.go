// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestReadHosts(t *testing.T) {
	const spegel = "http://10.0.0.1:30020"
	for _, tt := range []struct {
		reason, registry, dir, toml string
		mirrors                     []string
		upstream                    string
		mayResolve                  bool
	}{
		{
			reason: "as Spegel writes it for docker.io", registry: "docker.io", dir: "docker.io",
			toml:    "server = 'https://registry-1.docker.io'\n[host.'" + spegel + "']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n",
			mirrors: []string{spegel}, upstream: "https://registry-1.docker.io", mayResolve: true,
		}, {
			reason: "as Spegel writes it with --resolve-tags=false", registry: "ghcr.io", dir: "ghcr.io",
			toml:    "server = 'https://ghcr.io'\n[host.'" + spegel + "']\ncapabilities = ['pull']\n",
			mirrors: []string{spegel}, upstream: "https://ghcr.io",
		}, {
			reason: "as Spegel writes _default: without a server the registry itself is the upstream", registry: "ghcr.io", dir: "_default",
			toml:    "[host.'" + spegel + "']\ncapabilities = ['pull', 'resolve']\n",
			mirrors: []string{spegel}, upstream: "https://ghcr.io", mayResolve: true,
		}, {
			reason: "the directory of a registry with a port", registry: "registry:5000", dir: "registry_5000_",
			toml:    "server = 'http://registry:5000'\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstream: "http://registry:5000", mayResolve: true,
		}, {
			reason: "no configuration", registry: "docker.io", upstream: "https://registry-1.docker.io",
		}, {
			reason: "mirrors stay in their order", registry: "ghcr.io", dir: "ghcr.io",
			toml:    "[host.'http://b:1']\n[host.'http://a:1']\n",
			mirrors: []string{"http://b:1", "http://a:1"}, upstream: "https://ghcr.io", mayResolve: true,
		}, {
			reason: "a host that may only be pushed to is no mirror", registry: "ghcr.io", dir: "ghcr.io",
			toml: "[host.'" + spegel + "']\ncapabilities = ['push']\n", upstream: "https://ghcr.io",
		}, {
			reason: "the registry as a host is no mirror", registry: "ghcr.io", dir: "ghcr.io",
			toml: "server = 'https://elsewhere.test'\n[host.'https://ghcr.io']\n[host.'https://GHCR.IO:443']\n" +
				"[host.'http://ghcr.io']\n[host.'https://ghcr.io.']\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstream: "https://elsewhere.test", mayResolve: true,
		}, {
			reason: "docker.io under its other names is no mirror either", registry: "docker.io", dir: "docker.io",
			toml: "server = 'https://registry-1.docker.io'\n[host.'https://index.docker.io']\n" +
				"[host.'https://registry-1.docker.io:443']\n[host.'https://docker.io']\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstream: "https://registry-1.docker.io", mayResolve: true,
		}, {
			reason: "what the server line names is no mirror", registry: "docker.io", dir: "docker.io",
			toml:    "server = 'https://harbor.test'\n[host.'https://harbor.test/v2/proxy']\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstream: "https://harbor.test", mayResolve: true,
		}, {
			reason: "another port is another host", registry: "10.0.0.1:5000", dir: "10.0.0.1_5000_",
			toml:    "server = 'http://10.0.0.1:5000'\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstream: "http://10.0.0.1:5000", mayResolve: true,
		}, {
			reason: "a file that does not parse has no mirrors", registry: "ghcr.io", dir: "ghcr.io",
			toml: "[host.", upstream: "https://ghcr.io",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			root := t.TempDir()
			if tt.dir != "" {
				if err := os.Mkdir(filepath.Join(root, tt.dir), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, tt.dir, "hosts.toml"), []byte(tt.toml), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			hosts, err := ReadHosts(t.Context(), root, tt.registry, nil)
			if err != nil {
				t.Fatal(err)
			}
			var mirrors []string
			for _, host := range hosts.Mirrors {
				mirrors = append(mirrors, host.Scheme+"://"+host.Host)
			}
			if !slices.Equal(mirrors, tt.mirrors) {
				t.Errorf("mirrors %q, want %q", mirrors, tt.mirrors)
			}
			if got := hosts.Upstream.Scheme + "://" + hosts.Upstream.Host; got != tt.upstream {
				t.Errorf("upstream %q, want %q", got, tt.upstream)
			}
			if got := hosts.MirrorMayResolve(); got != tt.mayResolve {
				t.Errorf("a mirror may resolve: %v, want %v", got, tt.mayResolve)
			}
		})
	}
}
