// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/install"
)

// clusterInfo is what the show must know about the cluster. The supervisor writes it
// down when the cluster is up.
type clusterInfo struct {
	Kubeconfig string            `json:"kubeconfig"`
	Kubectl    string            `json:"kubectl"`
	Upstream   string            `json:"upstream"` // URL
	Nodes      map[string]string `json:"nodes"`    // names by address
	Took       time.Duration     `json:"took"`     // from nothing to all started
}

// uplink is what the upstream registry sends in all, in bytes per second:
// slow enough to be seen.
const uplink = 24 * images.MiB

func stateDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "sluice", "demo")
	return dir, os.MkdirAll(dir, 0o755)
}

// bringUp starts the supervisor and waits until the cluster is up.
func bringUp(ctx context.Context, opts options) (*clusterInfo, error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := cluster.Detach(ctx, dir, os.Stdout, self, "--supervise", fmt.Sprintf("--nodes=%d", opts.nodes)); err != nil {
		return nil, fmt.Errorf("start the cluster (if an earlier one is up, 'make demo-down' ends it): %w", err)
	}
	return readInfo(dir)
}

// supervise runs the cluster until it is told to end.
func supervise(ctx context.Context, opts options) (err error) {
	began := time.Now()
	dir, err := stateDir()
	if err != nil {
		return err
	}
	ctx, ready, err := cluster.Supervise(ctx, dir)
	if err != nil {
		return err
	}
	logf := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	i, err := install.Start(ctx, install.Options{
		Nodes:  cluster.Nodes(opts.nodes),
		LogDir: filepath.Join(dir, "log"),
		Logf:   logf,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.Stop()) }()
	if err := stock(ctx, i); err != nil {
		return fmt.Errorf("fill the upstream registry: %w", err)
	}
	if err := setUp(ctx, i, logf); err != nil {
		return err
	}
	info := clusterInfo{
		Kubeconfig: i.Cluster.Kubeconfig(),
		Kubectl:    i.Cluster.KubectlPath(),
		Upstream:   i.Upstream.URL(),
		Nodes:      map[string]string{},
		Took:       time.Since(began),
	}
	for _, node := range i.Cluster.Nodes() {
		info.Nodes[node.IP] = node.Name
	}
	if err := info.write(dir); err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return nil
}

// setUp installs Sluice as an administrator does.
func setUp(ctx context.Context, i *install.Installation, logf func(string, ...any)) error {
	logf("Installing cert-manager")
	if err := i.InstallCertManager(ctx); err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	logf("Installing Sluice with Helm")
	if _, err := i.Install(ctx); err != nil {
		return fmt.Errorf("install Sluice: %w", err)
	}
	return nil
}

// stock puts images into the upstream registry that share their base: five layers of
// 8 MiB below, and two of their own.
func stock(ctx context.Context, i *install.Installation) error {
	base := images.Layers("demo-base", 5, 8*images.MiB)
	for _, name := range []string{"app:v1", "app:v2", "sidecar:v1"} {
		image, err := images.Pause(ctx, slices.Concat(base, images.Layers("demo-"+name, 2, 6*images.MiB))...)
		if err != nil {
			return err
		}
		if err := i.Upstream.Push("demo/"+name, image); err != nil {
			return err
		}
	}
	i.Upstream.SetRate(uplink)
	return nil
}

func infoFile(dir string) string { return filepath.Join(dir, "cluster.json") }

func (i *clusterInfo) write(dir string) error {
	content, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(infoFile(dir), content, 0o644)
}

func readInfo(dir string) (*clusterInfo, error) {
	content, err := os.ReadFile(infoFile(dir))
	if err != nil {
		return nil, err
	}
	info := &clusterInfo{}
	return info, json.Unmarshal(content, info)
}

// takeDown ends the cluster and returns when it is gone.
func takeDown(ctx context.Context) error {
	dir, err := stateDir()
	if err != nil {
		return err
	}
	return cluster.Down(ctx, dir)
}

// farewell says how to go on with the cluster.
func (i *clusterInfo) farewell() {
	fmt.Printf("\nThe cluster is up. To play with it:\n\n  export KUBECONFIG=%s PATH=%s:$PATH\n  kubectl get imageprefetches,nodeimagesets,pods -A\n\n'make demo-down' ends it.\n",
		i.Kubeconfig, filepath.Dir(i.Kubectl))
}
