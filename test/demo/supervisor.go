// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	Kubeconfig string             `json:"kubeconfig"`
	Kubectl    string             `json:"kubectl"`
	Upstream   string             `json:"upstream"` // URL
	Nodes      map[string]string  `json:"nodes"`    // names by address
	Mirror     string             `json:"mirror"`   // in words
	Contents   string             `json:"contents"` // socket of serveContents
	Images     map[string]stocked `json:"images"`   // that were pushed, by name
	Took       time.Duration      `json:"took"`     // from nothing to all started
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
	pushed, err := stock(ctx, i)
	if err != nil {
		return fmt.Errorf("fill the upstream registry: %w", err)
	}
	if err := setUp(ctx, i, logf); err != nil {
		return err
	}
	socket := filepath.Join(dir, "contents.sock")
	stop, err := serveContents(socket, i.Cluster, slices.Sorted(maps.Keys(pushed)))
	if err != nil {
		return fmt.Errorf("serve what the nodes have: %w", err)
	}
	defer func() { err = errors.Join(err, stop()) }()
	info := clusterInfo{
		Kubeconfig: i.Cluster.Kubeconfig(),
		Kubectl:    i.Cluster.KubectlPath(),
		Upstream:   i.Upstream.URL(),
		Nodes:      map[string]string{},
		Mirror:     mirrorInWords(),
		Contents:   socket,
		Images:     pushed,
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

// mirrorInWords says what runs as the mirror of each node.
func mirrorInWords() string {
	if binary := os.Getenv("SPEGEL"); binary != "" {
		return "nothing: it is " + binary
	}
	return "test/peermirror, which misses as Spegel was measured to; SPEGEL=BINARY runs Spegel itself"
}

// stocked is an image that was pushed. What the nodes and the registry are to say is worked out
// from it.
type stocked struct {
	Digest  string   `json:"digest"`
	Content []string `json:"content"` // digests of the manifest, the config and the layers
}

// stock puts images into the upstream registry that share their base: five layers of
// 8 MiB below, and two of their own.
func stock(ctx context.Context, i *install.Installation) (map[string]stocked, error) {
	pushed := map[string]stocked{}
	base := images.Layers("demo-base", 5, 8*images.MiB)
	for _, name := range []string{"app:v1", "app:v2", "sidecar:v1"} {
		image, err := images.Pause(ctx, slices.Concat(base, images.Layers("demo-"+name, 2, 6*images.MiB))...)
		if err != nil {
			return nil, err
		}
		if err := i.Upstream.Push("demo/"+name, image); err != nil {
			return nil, err
		}
		var content []string
		err = images.Walk(image, func(blob images.Blob) error { // the manifest comes last
			content = append(content, blob.Digest.String())
			return nil
		})
		if err != nil {
			return nil, err
		}
		pushed[install.Registry+"/demo/"+name] = stocked{Digest: content[len(content)-1], Content: content}
	}
	i.Upstream.SetRate(uplink)
	return pushed, nil
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
