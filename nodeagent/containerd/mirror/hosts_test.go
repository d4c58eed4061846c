// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

func TestReadHosts(t *testing.T) {
	const spegel = "http://10.0.0.1:30020"
	for _, tt := range []struct {
		reason, registry, dir, toml string
		mirrors                     []string
		upstreams                   []string
		mayResolve                  bool
	}{
		{
			reason: "as Spegel writes it for docker.io", registry: "docker.io", dir: "docker.io",
			toml:    "server = 'https://registry-1.docker.io'\n[host.'" + spegel + "']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n",
			mirrors: []string{spegel}, upstreams: []string{"https://registry-1.docker.io"}, mayResolve: true,
		}, {
			reason: "as Spegel writes it with --resolve-tags=false", registry: "ghcr.io", dir: "ghcr.io",
			toml:    "server = 'https://ghcr.io'\n[host.'" + spegel + "']\ncapabilities = ['pull']\n",
			mirrors: []string{spegel}, upstreams: []string{"https://ghcr.io"},
		}, {
			reason: "as Spegel writes _default: without a server the registry itself is the upstream", registry: "ghcr.io", dir: "_default",
			toml:    "[host.'" + spegel + "']\ncapabilities = ['pull', 'resolve']\n",
			mirrors: []string{spegel}, upstreams: []string{"https://ghcr.io"}, mayResolve: true,
		}, {
			reason: "the directory of a registry with a port", registry: "registry:5000", dir: "registry_5000_",
			toml:    "server = 'http://registry:5000'\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstreams: []string{"http://registry:5000"}, mayResolve: true,
		}, {
			reason: "no configuration", registry: "docker.io", upstreams: []string{"https://registry-1.docker.io"},
		}, {
			reason: "mirrors stay in their order", registry: "ghcr.io", dir: "ghcr.io",
			toml:    "[host.'http://b:1']\n[host.'http://a:1']\n",
			mirrors: []string{"http://b:1", "http://a:1"}, upstreams: []string{"https://ghcr.io"}, mayResolve: true,
		}, {
			reason: "a host that may only be pushed to is no mirror", registry: "ghcr.io", dir: "ghcr.io",
			toml: "[host.'" + spegel + "']\ncapabilities = ['push']\n", upstreams: []string{"https://ghcr.io"},
		}, {
			reason: "the registry as a host is no mirror", registry: "ghcr.io", dir: "ghcr.io",
			toml: "server = 'https://elsewhere.test'\n[host.'https://ghcr.io']\n[host.'https://GHCR.IO:443']\n" +
				"[host.'http://ghcr.io']\n[host.'https://ghcr.io.']\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, mayResolve: true,
			upstreams: []string{"https://ghcr.io", "https://GHCR.IO:443", "http://ghcr.io", "https://ghcr.io.", "https://elsewhere.test"},
		}, {
			reason: "docker.io under its other names is no mirror either", registry: "docker.io", dir: "docker.io",
			toml: "server = 'https://registry-1.docker.io'\n[host.'https://index.docker.io']\n" +
				"[host.'https://registry-1.docker.io:443']\n[host.'https://docker.io']\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, mayResolve: true,
			upstreams: []string{"https://index.docker.io", "https://registry-1.docker.io:443", "https://docker.io", "https://registry-1.docker.io"},
		}, {
			reason: "what the server line names is no mirror", registry: "docker.io", dir: "docker.io",
			toml:    "server = 'https://harbor.test'\n[host.'https://harbor.test/v2/proxy']\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstreams: []string{"https://harbor.test", "https://harbor.test"}, mayResolve: true,
		}, {
			reason: "another port is another host", registry: "10.0.0.1:5000", dir: "10.0.0.1_5000_",
			toml:    "server = 'http://10.0.0.1:5000'\n[host.'" + spegel + "']\n",
			mirrors: []string{spegel}, upstreams: []string{"http://10.0.0.1:5000"}, mayResolve: true,
		}, {
			reason: "the registry over plain HTTP beside the mirror, without a server", registry: "registry:5000", dir: "registry_5000_",
			toml:    "[host.'" + spegel + "']\n[host.'http://registry:5000']\n",
			mirrors: []string{spegel}, upstreams: []string{"http://registry:5000", "https://registry:5000"}, mayResolve: true,
		}, {
			reason: "a file that does not parse has no mirrors", registry: "ghcr.io", dir: "ghcr.io",
			toml: "[host.", upstreams: []string{"https://ghcr.io"},
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			root := t.TempDir()
			if tt.dir != "" {
				writeHosts(t, root, tt.dir, tt.toml)
			}
			hosts, err := Config{Roots: []string{root}, Scratch: t.TempDir()}.Read(t.Context(), tt.registry, nil)
			if err != nil {
				t.Fatal(err)
			}
			if mirrors := urls(hosts.Mirrors); !slices.Equal(mirrors, tt.mirrors) {
				t.Errorf("mirrors %q, want %q", mirrors, tt.mirrors)
			}
			if upstreams := urls(hosts.Upstreams); !slices.Equal(upstreams, tt.upstreams) {
				t.Errorf("upstreams %q, want %q", upstreams, tt.upstreams)
			}
			if got := hosts.MirrorMayResolve(); got != tt.mayResolve {
				t.Errorf("a mirror may resolve: %v, want %v", got, tt.mayResolve)
			}
		})
	}
}

func urls(hosts []docker.RegistryHost) (urls []string) {
	for _, host := range hosts {
		urls = append(urls, host.Scheme+"://"+host.Host)
	}
	return urls
}
