// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// Config says where the hosts of registries are configured.
type Config struct {
	// Roots are the directories of the hosts.toml files, such as /etc/containerd/certs.d, in the order
	// in which CRI looks into them. At least one.
	Roots []string
	// Scratch is a directory for hosts.toml files that leave hosts out. The daemon must see it under
	// the same path. It is made when it is needed.
	Scratch string
	// Upstreams are further hosts, of [host] entries, whose answers count as the registry's, such as
	// a pull-through cache that is the only way out.
	Upstreams []string
	// RedirectHosts are further hosts to which mirrors may send a peer: their storage, or the server
	// that gives out their tokens.
	RedirectHosts []string
}

// Hosts are the hosts that containerd would ask for a registry's content.
type Hosts struct {
	// Mirrors are the hosts that a peer may ask.
	Mirrors []docker.RegistryHost
	// Upstreams are the registry, as the node reaches it, in the order in which containerd asks them:
	// the hosts of its own name and those of Config.Upstreams, each with its scheme, its CA and its
	// path, and what the "server" line names; without that line, what containerd asks where there is
	// none.
	Upstreams []docker.RegistryHost
	// Unusable says why hosts are in neither list, as a file that is not there for this process, or
	// names that only the daemon can rewrite: the daemon may well use them. Nil if there are none.
	Unusable error
	// UpstreamUnusable reports whether the registry itself is among them.
	UpstreamUnusable bool
	// Rejected says why containerd goes by nothing that the hosts.toml says. Nil if it goes by it.
	Rejected error

	config   Config
	registry string
	root     string // the one of Config.Roots that has something for the registry
	file     *file  // nil: there is no hosts.toml, or containerd does not go by it
}

// Read reads the configuration of a registry ("docker.io", "registry:5000"). Like containerd it
// reads the files in each call. The credentials are for the upstream; nil is anonymous.
func (c Config) Read(ctx context.Context, registry string, credentials func(host string) (string, string, error)) (Hosts, error) {
	hosts := Hosts{config: c, registry: registry}
	var err error
	if hosts.file, hosts.root, err = c.find(registry); err != nil {
		return Hosts{}, fmt.Errorf("read hosts of registry %q: %w", registry, err)
	}
	ctx, heard := listen(ctx)
	configure := func(root string) ([]docker.RegistryHost, error) {
		return config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(root), Credentials: credentials})(registry)
	}
	all, err := configure(hosts.root)
	hosts.Rejected = heard.err
	// containerd puts the server last or, where there is none, the registry itself.
	if err == nil && len(all) == 1 && hosts.file != nil && len(hosts.file.names) > 0 {
		hosts.file = nil // it has something in it that containerd does not accept
	}
	if err == nil && (hosts.file == nil || !slices.ContainsFunc(hosts.file.names, hosts.file.rewrites)) {
		hosts.add(all[:len(all)-1], &all[len(all)-1])
		return hosts, nil
	}
	if hosts.file == nil { // the files of the registry's own certificates
		hosts.Unusable, hosts.UpstreamUnusable = err, true
		return hosts, nil
	}

	// One host is enough to spoil all of them, so each is tried by itself.
	part := func(f file) ([]docker.RegistryHost, error) {
		root, remove, err := c.write(f)
		if err != nil {
			return nil, err
		}
		defer remove()
		return configure(root)
	}
	var usable []docker.RegistryHost
	for _, name := range hosts.file.names {
		alone := file{names: []string{name}, hosts: hosts.file.hosts}
		found, err := part(alone)
		if err == nil && alone.rewrites(name) {
			err = errRewrite
		}
		if err != nil {
			hosts.Unusable = errors.Join(hosts.Unusable, fmt.Errorf("host %q: %w", name, err))
			hosts.UpstreamUnusable = hosts.UpstreamUnusable || hosts.isUpstream(hostOf(name))
			continue
		}
		usable = append(usable, found[0])
	}
	var server *docker.RegistryHost
	if found, err := part(file{server: hosts.file.server}); err != nil {
		hosts.Unusable = errors.Join(hosts.Unusable, fmt.Errorf("server: %w", err))
		hosts.UpstreamUnusable = true
	} else {
		server = &found[0]
	}
	hosts.add(usable, server)
	return hosts, nil
}

// errRewrite is why a host is left out whose names of images are rewritten: from here, it would be
// asked for others than by the daemon.
var errRewrite = errors.New("its rewrite patterns are followed by the containerd of k3s alone, so that peers do without it")

// add sorts hosts into mirrors and upstreams. server is nil if it cannot be used.
func (h *Hosts) add(hosts []docker.RegistryHost, server *docker.RegistryHost) {
	for _, host := range hosts {
		switch {
		case h.isUpstream(host.Host):
			h.Upstreams = append(h.Upstreams, host)
		case host.Capabilities.Has(docker.HostCapabilityPull):
			h.Mirrors = append(h.Mirrors, h.confine(host))
		}
	}
	if server != nil {
		h.Upstreams = append(h.Upstreams, *server)
	}
}

// isUpstream reports whether a host is the registry: by its own name, by that of the server line, or
// because the configuration says so.
func (h *Hosts) isUpstream(host string) bool {
	names := append([]string{h.registry}, h.config.Upstreams...)
	if h.file != nil {
		if server, ok := h.file.server["server"].(string); ok {
			names = append(names, hostOf(server))
		}
	}
	return slices.ContainsFunc(names, func(name string) bool { return canonical(name) == canonical(host) })
}

// find finds the root that has something for a registry, and reads its hosts.toml.
func (c Config) find(registry string) (f *file, root string, err error) {
	for _, root := range c.Roots {
		dir, err := config.HostDirFromRoot(root)(registry)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		f, err := readFile(dir)
		return f, root, err
	}
	return nil, c.Roots[0], nil
}

// readFile reads the hosts.toml of a directory; nil if there is none. One that does not parse is none
// for containerd either.
func readFile(dir string) (*file, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(raw) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := parseFile(dir, raw)
	if err != nil {
		return nil, nil //nolint:nilerr // containerd logs it and goes on without
	}
	return &f, nil
}

// WriteWithout writes the configuration without some of the mirrors, for the daemon. It returns the
// directory, which takes the place of Root() until remove is called.
func (h *Hosts) WriteWithout(mirrors []docker.RegistryHost) (root string, remove func(), err error) {
	return h.writeWithout(func(host string) bool {
		return slices.ContainsFunc(mirrors, func(mirror docker.RegistryHost) bool { return host == mirror.Host })
	})
}

// WriteUpstreams is as WriteWithout, without any mirror.
func (h *Hosts) WriteUpstreams() (root string, remove func(), err error) {
	return h.writeWithout(func(host string) bool { return !h.isUpstream(host) })
}

func (h *Hosts) writeWithout(leaveOut func(host string) bool) (root string, remove func(), err error) {
	if h.file == nil {
		return h.root, func() {}, nil
	}
	rest := *h.file
	rest.names = slices.DeleteFunc(slices.Clone(rest.names), func(name string) bool { return leaveOut(hostOf(name)) })
	return h.config.write(rest)
}

// write writes a hosts.toml for every registry below a new directory.
func (c Config) write(f file) (root string, remove func(), err error) {
	text, err := f.marshal()
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(c.Scratch, 0o700); err != nil {
		return "", nil, fmt.Errorf("make directory for hosts.toml files: %w", err)
	}
	if root, err = os.MkdirTemp(c.Scratch, ""); err != nil {
		return "", nil, fmt.Errorf("make directory for a hosts.toml: %w", err)
	}
	remove = func() { _ = os.RemoveAll(root) }
	dir := filepath.Join(root, "_default")
	err = os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "hosts.toml"), text, 0o600)
	}
	if err != nil {
		remove()
		return "", nil, fmt.Errorf("write hosts.toml: %w", err)
	}
	return root, remove, nil
}

// TryScratch writes into Scratch what is removed again.
func (c Config) TryScratch() error {
	_, remove, err := c.write(file{})
	if err == nil {
		remove()
	}
	return err
}

// hostOf is the host of an entry's name or of the server line, as containerd reads it.
func hostOf(name string) string {
	if !strings.HasPrefix(name, "http") {
		name = "https://" + name
	}
	u, err := url.Parse(name)
	if err != nil {
		return ""
	}
	return u.Host
}

// Root is the directory in which the daemon finds the registry's configuration.
func (h *Hosts) Root() string { return h.root }

// Close closes the idle connections, which belong to this call of Read alone.
func (h *Hosts) Close() {
	for _, host := range slices.Concat(h.Mirrors, h.Upstreams) {
		host.Client.CloseIdleConnections()
	}
}

// MirrorMayResolve reports whether containerd would ask a mirror what a tag means, be it one that
// this process cannot use. A mirror may answer with what some node has rather than with what the
// registry says now.
func (h *Hosts) MirrorMayResolve() bool {
	return h.file != nil && slices.ContainsFunc(h.file.names, func(name string) bool {
		return !h.isUpstream(hostOf(name)) && h.file.mayResolve(name)
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
