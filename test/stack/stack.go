// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stack runs Sluice on a real cluster on this machine: an upstream
// registry that counts, a mirror on every node, the CRDs and roles as they are
// installed, the controllers, and an agent on every node with a token bound to
// that node. The end-to-end tests and the demo are built on it.
package stack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// Registry is the name of the upstream registry in image references.
const Registry = "registry.sluice.test"

// Namespace is where Sluice is installed.
const Namespace = "sluice-system"

// Options describe a stack. The zero value has three nodes and one controller.
type Options struct {
	// Nodes to begin with; three if nil.
	Nodes []cluster.NodeOptions
	// Controllers run side by side, with leader election; one if 0.
	Controllers int
	// ControllerFlags and AgentFlags are given besides those that a stack needs.
	ControllerFlags, AgentFlags []string
	// MirrorFlags are given to the stand-in of Spegel: --behave=well, say.
	MirrorFlags []string
	// Webhooks has the API server ask the first controller about Deployments and our
	// own kinds.
	Webhooks bool
	// Race builds the controller and the agent with the race detector; Stop
	// then fails if it has found something.
	Race bool
	// Audit has the API server log every request.
	Audit bool
	// AuditObjects has that log tell what became of ImagePrefetches and NodeImageSets.
	AuditObjects bool
	// LogDir keeps the logs; if empty they go with the stack.
	LogDir string
	// Logf is told what takes time.
	Logf func(format string, args ...any)
}

// Stack is a running installation.
type Stack struct {
	Cluster  *cluster.Cluster
	Upstream *upstream.Server
	// Client is the administrator's.
	Client client.WithWatch

	options  Options
	programs programs
	config   *rest.Config
	ca       []byte // of the controllers' certificate

	mu          sync.Mutex
	controllers []*cluster.Process
	agents      map[string]*cluster.Process
}

// Start builds what is needed and starts everything. It returns when the nodes
// are Ready and the programs have been started.
func Start(ctx context.Context, opts Options) (_ *Stack, err error) {
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	if opts.Controllers == 0 {
		opts.Controllers = 1
	}
	s := &Stack{options: opts, agents: map[string]*cluster.Process{}}
	if s.programs, err = build(ctx, opts.Race); err != nil {
		return nil, err
	}
	if s.Upstream, err = upstream.New(upstream.Options{}); err != nil {
		return nil, err
	}
	mirror, err := cluster.DefaultMirror(ctx, opts.Logf, opts.MirrorFlags...)
	if err != nil {
		return nil, err
	}
	s.Cluster, err = cluster.Start(ctx, cluster.Options{
		Nodes:         opts.Nodes,
		Mirror:        mirror,
		UpstreamNames: []string{Registry},
		Audit:         opts.Audit,
		AuditObjects:  opts.AuditObjects,
		LogDir:        opts.LogDir,
		Logf:          opts.Logf,
	})
	if err != nil {
		return nil, err
	}
	if err := s.install(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Stack) install(ctx context.Context) error {
	// Port 80, so that the name alone is the registry's address, as with a real one.
	if err := s.Upstream.Start(net.JoinHostPort(s.Cluster.GatewayIP, "80")); err != nil {
		return fmt.Errorf("start upstream registry: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	var err error
	if s.config, err = s.Cluster.RESTConfig(); err != nil {
		return err
	}
	s.config.QPS = -1 // a test is not to wait for itself
	if s.Client, err = client.NewWithWatch(s.config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	root, err := repositoryRoot()
	if err != nil {
		return err
	}
	for _, dir := range []string{"config/crd", "config/rbac"} {
		if _, err := s.Cluster.Kubectl(ctx, "apply", "--server-side", "-f", filepath.Join(root, dir)); err != nil {
			return fmt.Errorf("install %s: %w", dir, err)
		}
	}
	if _, err := s.Cluster.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"); err != nil {
		return err
	}
	if err := s.certify(ctx); err != nil {
		return fmt.Errorf("certify the controllers: %w", err)
	}
	for range s.options.Controllers {
		if _, err := s.StartController(ctx); err != nil {
			return err
		}
	}
	if s.options.Webhooks {
		if err := s.installWebhooks(ctx, root); err != nil {
			return fmt.Errorf("install the webhooks: %w", err)
		}
	}
	for _, node := range s.Cluster.Nodes() {
		if err := s.equip(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// AddNode adds a node with a mirror and an agent.
func (s *Stack) AddNode(ctx context.Context, opts cluster.NodeOptions) (*cluster.Node, error) {
	node, err := s.Cluster.AddNode(ctx, opts)
	if err != nil {
		return nil, err
	}
	return node, s.equip(ctx, node)
}

// Names are the nodes' names by address: what the upstream registry calls a
// client, and what people call it.
func (s *Stack) Names() map[string]string {
	names := map[string]string{}
	for _, node := range s.Cluster.Nodes() {
		names[node.IP] = node.Name
	}
	return names
}

// Push puts an image or an index into the upstream registry.
func (s *Stack) Push(ref string, artifact images.Artifact) error {
	return s.Upstream.Push(ref, artifact)
}

// Stop ends everything. It fails when something was left behind, or when the
// race detector found something.
func (s *Stack) Stop() error {
	running := s.Controllers()
	s.mu.Lock()
	for agent := range maps.Values(s.agents) {
		running = append(running, agent)
	}
	s.mu.Unlock()
	var errs []error
	for _, process := range running {
		process.Stop()
		errs = append(errs, s.raceIn(process))
	}
	errs = append(errs, s.Cluster.Stop(), s.Upstream.Close(), os.RemoveAll(s.programs.dir))
	return errors.Join(errs...)
}
