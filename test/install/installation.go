// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install runs Sluice as administrators do: the images that `make images`
// builds, in Pods, installed by Helm with the chart of this repository, beside
// cert-manager, on a real cluster on this machine.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apimachineryruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/peermirror"
	"github.com/sluice-dev/sluice/test/upstream"
)

const (
	// Registry is the name of the upstream registry in image references.
	Registry = "registry.sluice.test"
	// Namespace is where the chart is installed.
	Namespace = "sluice-system"
	// Release is the name of the Helm release.
	Release = "sluice"
	// Version is the tag of the images.
	Version = "v0.0.0-test"
)

// Options describe a cluster to install Sluice on.
type Options struct {
	// Nodes to begin with; three if nil. Each has a disk of its own for containerd, so that the level of
	// this machine's decides nothing.
	Nodes []cluster.NodeOptions
	// UpstreamNames are registry names that nodes and Pods find at the gateway, besides Registry.
	UpstreamNames []string
	// Audit has the API server log every request.
	Audit bool
	// LogDir keeps the logs of the cluster's programs.
	LogDir string
	// Logf is told what takes time; nil for silence.
	Logf func(format string, args ...any)
}

// Installation is a cluster with nodes, mirrors, an upstream registry and images of
// Sluice, on which Helm may do what it likes.
type Installation struct {
	Cluster  *cluster.Cluster
	Upstream *upstream.Server
	// Client is the administrator's.
	Client client.WithWatch
	// Config is that of the administrator.
	Config *rest.Config
	// Chart is the path of the chart.
	Chart string

	root, dir, helm string
	logf            func(format string, args ...any)
}

// Start starts the cluster and brings Sluice's images to its nodes.
func Start(ctx context.Context, opts Options) (_ *Installation, err error) {
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	i := &Installation{logf: opts.Logf}
	if i.root, err = repositoryRoot(); err != nil {
		return nil, err
	}
	i.Chart = filepath.Join(i.root, "charts", "sluice")
	if i.helm, err = cluster.Helm(ctx, opts.Logf); err != nil {
		return nil, err
	}
	if i.dir, err = os.MkdirTemp("", "sluice-install-"); err != nil {
		return nil, err
	}
	if i.Upstream, err = upstream.New(upstream.Options{}); err != nil {
		return nil, err
	}
	mirror, err := cluster.DefaultMirror(ctx, opts.Logf)
	if err != nil {
		return nil, err
	}
	i.Cluster, err = cluster.Start(ctx, cluster.Options{
		Nodes:         withDisks(opts.Nodes),
		Mirror:        mirror,
		Services:      true,
		UpstreamNames: append([]string{Registry}, opts.UpstreamNames...),
		Audit:         opts.Audit,
		LogDir:        opts.LogDir,
		Logf:          opts.Logf,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(i.dir))
	}
	if err := i.prepare(ctx); err != nil {
		return nil, errors.Join(err, i.Stop())
	}
	return i, nil
}

func (i *Installation) prepare(ctx context.Context) error {
	// Port 80, so that the name alone is the registry's address, as with a real one.
	if err := i.Upstream.Start(net.JoinHostPort(i.Cluster.GatewayIP, "80")); err != nil {
		return fmt.Errorf("start upstream registry: %w", err)
	}
	scheme := apimachineryruntime.NewScheme()
	err := errors.Join(clientgoscheme.AddToScheme(scheme), admissionregistrationv1.AddToScheme(scheme),
		apiextensionsv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
	if err != nil {
		return err
	}
	if i.Config, err = i.Cluster.RESTConfig(); err != nil {
		return err
	}
	if i.Client, err = client.NewWithWatch(i.Config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	archives, err := i.BuildImages(ctx, Version)
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, node := range i.Cluster.Nodes() {
		group.Go(func() error {
			if err := configureMirror(node); err != nil {
				return fmt.Errorf("configure registries of %s: %w", node.Name, err)
			}
			return importAll(ctx, node, archives)
		})
	}
	return group.Wait()
}

// configureMirror writes the node's hosts.toml as Spegel does.
func configureMirror(node *cluster.Node) error {
	return peermirror.WriteConfiguration(node.CertsDir, []string{"http://" + Registry}, []string{node.MirrorURL()}, true)
}

// BuildImages builds Sluice's images for this machine, and returns their archives.
func (i *Installation) BuildImages(ctx context.Context, version string) ([]string, error) {
	out := filepath.Join(i.dir, version)
	build := exec.CommandContext(ctx, "go", "run", "./hack/images", "--out="+out, "--tar", "--platform=linux/"+runtime.GOARCH, "--version="+version)
	build.Dir = i.root
	text, err := build.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("build images: %w\n%s", err, text)
	}
	i.logf("%s", bytes.TrimSpace(text))
	return filepath.Glob(filepath.Join(out, "*.tar"))
}

func importAll(ctx context.Context, node *cluster.Node, archives []string) error {
	for _, path := range archives {
		archive, err := os.Open(path)
		if err != nil {
			return err
		}
		err = node.Import(ctx, archive)
		if closeErr := archive.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("import %s on %s: %w", filepath.Base(path), node.Name, err)
		}
	}
	return nil
}

// Helm runs helm as the administrator and returns what it printed.
func (i *Installation) Helm(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	command := exec.CommandContext(ctx, i.helm, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+i.Cluster.Kubeconfig(),
		"HELM_CACHE_HOME="+i.dir, "HELM_CONFIG_HOME="+i.dir, "HELM_DATA_HOME="+i.dir)
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w\n%s", args[0], err, out.String())
	}
	return out.String(), nil
}

// Install installs or upgrades the chart, and waits for its Pods.
func (i *Installation) Install(ctx context.Context, args ...string) (string, error) {
	return i.Helm(ctx, append([]string{
		"upgrade", "--install", Release, i.Chart, "--namespace", Namespace, "--create-namespace", "--wait", "--timeout=3m",
		"--set", "image.tag=" + Version,
	}, args...)...)
}

// diskBytes is more than any test writes to a node, and takes only what is written.
const diskBytes = 20 << 30

func withDisks(nodes []cluster.NodeOptions) []cluster.NodeOptions {
	if nodes == nil {
		nodes = cluster.Nodes(3)
	}
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Disks = append(nodes[i].Disks, cluster.Disk{Path: cluster.ContainerdRoot, Bytes: diskBytes})
	}
	return nodes
}

// InstallCertManager runs cert-manager: its CRDs, roles and Deployments as its chart
// has them, its code in images of ours. Its webhook, whose code is not available, is
// left out.
func (i *Installation) InstallCertManager(ctx context.Context) error {
	programs, err := cluster.CertManager(ctx, i.logf)
	if err != nil {
		return err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager")
	list.Dir = filepath.Join(i.root, "test/cluster/binaries/certmanager")
	list.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	module, err := list.Output()
	if err != nil {
		return fmt.Errorf("find cert-manager's chart: %w", err)
	}
	chart := filepath.Join(strings.TrimSpace(string(module)), "deploy/charts/cert-manager")
	for _, name := range []string{"controller", "cainjector"} {
		// The chart in the module bears no version, and so its images have this one.
		if err := i.importProgram(ctx, filepath.Join(programs, name), "quay.io/jetstack/cert-manager-"+name+":v0.0.0"); err != nil {
			return err
		}
	}
	args := []string{"template", "cert-manager", chart, "--namespace", "cert-manager", "--kube-version=1.36.0", "--set", "crds.enabled=true",
		// Its own images name a user; ours do not.
		"--set", "securityContext.runAsUser=1000,cainjector.securityContext.runAsUser=1000"}
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		name := filepath.Base(file)
		switch {
		case strings.HasPrefix(name, "crd-"), name == "rbac.yaml", name == "serviceaccount.yaml", name == "deployment.yaml",
			name == "cainjector-rbac.yaml", name == "cainjector-serviceaccount.yaml", name == "cainjector-deployment.yaml":
			args = append(args, "--show-only", "templates/"+name)
		}
	}
	objects, err := i.Helm(ctx, args...)
	if err != nil {
		return err
	}
	path := filepath.Join(i.dir, "cert-manager.yaml")
	if err := os.WriteFile(path, []byte("{apiVersion: v1, kind: Namespace, metadata: {name: cert-manager}}\n---\n"+objects), 0o600); err != nil {
		return err
	}
	if _, err := i.Cluster.Kubectl(ctx, "apply", "--server-side", "-f", path); err != nil {
		return err
	}
	_, err = i.Cluster.Kubectl(ctx, "wait", "--namespace=cert-manager", "--for=condition=Available", "--timeout=90s", "deployment", "--all")
	return err
}

// UninstallCertManager deletes its Deployments, and nothing that is of use without them.
func (i *Installation) UninstallCertManager(ctx context.Context) error {
	_, err := i.Cluster.Kubectl(ctx, "delete", "deployment", "--all", "--namespace=cert-manager", "--wait")
	return err
}

func (i *Installation) importProgram(ctx context.Context, program, name string) error {
	image, err := images.Runnable(program)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := images.WriteArchive(&archive, name, image); err != nil {
		return err
	}
	var group errgroup.Group
	for _, node := range i.Cluster.Nodes() {
		group.Go(func() error { return node.Import(ctx, bytes.NewReader(archive.Bytes())) })
	}
	return group.Wait()
}

// Stop ends the cluster. It fails when something was left behind.
func (i *Installation) Stop() error {
	return errors.Join(i.Cluster.Stop(), i.Upstream.Close(), os.RemoveAll(i.dir))
}

// repositoryRoot is two folders above this file.
func repositoryRoot() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return "", fmt.Errorf("find the repository's root (was this built with -trimpath?): %w", err)
	}
	return root, nil
}
