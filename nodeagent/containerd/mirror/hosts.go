// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
)

// Hosts are the hosts that containerd would ask for a registry's content.
type Hosts struct {
	// Mirrors are the hosts that a peer may ask.
	Mirrors []docker.RegistryHost
	// Upstreams are the registry, as the node reaches it, in the order in which containerd asks them:
	// the hosts of its own name, each with its scheme, its CA and its path, and what the "server"
	// line names; without that line, what containerd asks where there is none. At least one.
	Upstreams []docker.RegistryHost
}

// ReadHosts reads the configuration of a registry ("docker.io", "registry:5000") below root, such
// as /etc/containerd/certs.d. Like containerd it reads the files in each call. The credentials are
// for the upstream; nil is anonymous.
func ReadHosts(ctx context.Context, root, registry string, credentials func(host string) (string, string, error)) (Hosts, error) {
	all, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     config.HostDirFromRoot(root),
		Credentials: credentials,
	})(registry)
	if err != nil {
		return Hosts{}, fmt.Errorf("read hosts of registry %q: %w", registry, err)
	}
	if len(all) == 0 {
		return Hosts{}, fmt.Errorf("read hosts of registry %q: no host", registry)
	}
	// containerd puts the server last or, where there is none, the registry itself.
	server := all[len(all)-1]
	upstream := []string{canonical(server.Host), canonical(registry)}
	var hosts Hosts
	for _, host := range all[:len(all)-1] {
		switch {
		case slices.Contains(upstream, canonical(host.Host)):
			hosts.Upstreams = append(hosts.Upstreams, host)
		case host.Capabilities.Has(docker.HostCapabilityPull):
			hosts.Mirrors = append(hosts.Mirrors, host)
		}
	}
	hosts.Upstreams = append(hosts.Upstreams, server)
	return hosts, nil
}

// Close closes the idle connections, which belong to this call of ReadHosts alone.
func (h Hosts) Close() {
	for _, host := range slices.Concat(h.Mirrors, h.Upstreams) {
		host.Client.CloseIdleConnections()
	}
}

// MirrorMayResolve reports whether containerd would ask a mirror what a tag means. A mirror may
// answer with what some node has rather than with what the registry says now.
func (h Hosts) MirrorMayResolve() bool {
	return slices.ContainsFunc(h.Mirrors, func(host docker.RegistryHost) bool {
		return host.Capabilities.Has(docker.HostCapabilityResolve)
	})
}

// dockerHub is the name under which all names of Docker Hub's registry compare equal.
const dockerHub = "docker.io"

var dockerHubNames = []string{"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// canonical gives one spelling to all names of the same registry: it ignores case, a final dot and
// a default port, and knows the names of Docker Hub. It drops both default ports, so that plain
// HTTP on a registry's host counts as that registry too.
func canonical(host string) string {
	host = strings.ToLower(host)
	for _, port := range []string{":443", ":80"} {
		host = strings.TrimSuffix(host, port)
	}
	host = strings.TrimSuffix(host, ".")
	if slices.Contains(dockerHubNames, host) {
		return dockerHub
	}
	return host
}
