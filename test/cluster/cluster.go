// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/test/cluster/internal/claim"
	"github.com/sluice-dev/sluice/test/cluster/internal/mount"
)

// Options describe a cluster.
type Options struct {
	// Nodes to begin with; Nodes(3) if nil.
	Nodes []NodeOptions
	// ContainerdOnly leaves out the control plane and the kubelets.
	ContainerdOnly bool
	// Mirror runs on every node, if not nil.
	Mirror *Mirror
	// Services has a kube-proxy on every node, and a name server for Services.
	Services bool
	// UpstreamNames are registry names that nodes find at the gateway,
	// besides those of the well-known registries.
	UpstreamNames []string
	// Audit makes the API server log every request, see Cluster.AuditLog.
	Audit bool
	// AuditObjects has that log tell what became of Deployments, ImagePrefetches and NodeImageSets.
	AuditObjects bool
	// LogDir keeps the logs of all programs; if empty they go with the cluster.
	LogDir string
	// Logf is told what takes time; nil for silence.
	Logf func(format string, args ...any)
}

// Nodes are n nodes with nothing special, in one zone each.
func Nodes(n int) []NodeOptions {
	nodes := make([]NodeOptions, n)
	for i := range nodes {
		nodes[i].Zone = fmt.Sprintf("zone-%d", i+1)
	}
	return nodes
}

// Cluster is a running cluster.
type Cluster struct {
	// Dir holds all files of the cluster. It goes when the cluster does.
	Dir string
	// GatewayIP is this host, as nodes see it. What listens there is their
	// upstream: it has the names of all registries.
	GatewayIP string
	// ControlPlane is nil if Options.ContainerdOnly.
	ControlPlane *ControlPlane

	options Options
	bin     Binaries
	claim   claim.Claim
	janitor *janitor
	control *machine
	logDir  string
	pause   []byte
	proxy   string // path of kube-proxy
	names   *nameServer

	mu    sync.Mutex
	nodes []*Node
	next  int
}

// Start builds what is needed (see Build) and starts a cluster. It returns
// when the nodes' daemons answer, and with a control plane when the nodes are
// Ready. Whoever starts a cluster calls Stop; if that does not happen because
// the process ends first, the cluster ends with it all the same.
func Start(ctx context.Context, opts Options) (_ *Cluster, err error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	if opts.Nodes == nil {
		opts.Nodes = Nodes(3)
	}
	c := &Cluster{options: opts}
	if err := raiseLimits(); err != nil {
		return nil, err
	}
	if c.bin, err = Build(ctx, opts.Logf); err != nil {
		return nil, err
	}
	if c.pause, err = pauseArchive(c.bin); err != nil {
		return nil, err
	}
	if opts.Services {
		if err := c.prepareServices(ctx); err != nil {
			return nil, err
		}
	}
	if c.janitor, c.claim, err = startJanitor(c.bin); err != nil {
		return nil, err
	}
	c.Dir = c.claim.Dir
	c.GatewayIP = c.claim.IP(nodeSubnet, gatewayHost).String()
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	c.logDir = c.options.LogDir
	if c.logDir == "" {
		c.logDir = filepath.Join(c.Dir, "log")
	}
	if err := os.MkdirAll(c.logDir, 0o755); err != nil {
		return err
	}
	if err := c.startControl(ctx); err != nil {
		return err
	}
	if !c.options.ContainerdOnly {
		plane, err := c.newControlPlane()
		if err != nil {
			return err
		}
		c.ControlPlane = plane
	}
	if c.options.Services {
		if err := c.startNameServer(); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx) // the first failure ends the waiting of all
	if c.ControlPlane != nil {
		group.Go(func() error { return c.ControlPlane.start(ctx) })
	}
	for _, opts := range c.options.Nodes {
		node, err := c.reserve(opts)
		if err != nil {
			return err
		}
		group.Go(func() error { return node.PowerOn(ctx) })
	}
	return group.Wait()
}

// startControl starts the machine of the control plane, whose network holds
// the cluster's bridge.
func (c *Cluster) startControl(ctx context.Context) error {
	if err := writeFiles(c.Dir, map[string]string{
		"hosts":       c.hosts("control-plane", c.claim.IP(nodeSubnet, controlHost).String()),
		"resolv.conf": resolvConf,
	}); err != nil {
		return err
	}
	control, err := startMachine(c.bin, "control-plane", path.Join("/", c.claim.Name, "control-plane"), []mount.Mount{
		mount.Bind(filepath.Join(c.Dir, "hosts"), "/etc/hosts"),
		mount.Bind(filepath.Join(c.Dir, "resolv.conf"), "/etc/resolv.conf"),
		mount.Proc(),
	})
	if err != nil {
		return err
	}
	c.control = control
	if err := c.connectControlPlane(ctx); err != nil {
		return fmt.Errorf("connect the host to the cluster: %w", err)
	}
	return nil
}

// Nodes are the nodes in the order in which they were asked for.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Node(nil), c.nodes...)
}

// Stop ends everything, and returns when nothing is left on the host.
func (c *Cluster) Stop() error {
	for _, node := range c.Nodes() {
		if node.machine != nil {
			node.PowerOff()
		}
	}
	if c.control != nil {
		c.control.kill()
	}
	c.names.stop()
	return c.janitor.stop()
}

// wellKnown are the registries that a leak would go to.
var wellKnown = []string{
	"docker.io", "registry-1.docker.io", "index.docker.io", "auth.docker.io",
	"ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "k8s.gcr.io",
	"public.ecr.aws", "mcr.microsoft.com",
}

// resolvConf names no server, so that resolvers ask their own node, which
// refuses at once.
const resolvConf = "# Names are in /etc/hosts.\n"

// hosts is a node's /etc/hosts.
func (c *Cluster) hosts(name, ip string) string {
	return fmt.Sprintf("127.0.0.1 localhost\n%s %s\n%s %s\n", ip, name, c.GatewayIP, strings.Join(c.upstreamNames(), " "))
}

// upstreamNames are the names of the gateway.
func (c *Cluster) upstreamNames() []string {
	return append(wellKnown[:len(wellKnown):len(wellKnown)], c.options.UpstreamNames...)
}
