// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/test/images"
)

// PauseImage is what containerd runs as every Pod's sandbox, and what Pods may
// run that have nothing to do. It is on each node from the start, under a name
// that no registry serves.
const PauseImage = "sluice.test/pause:latest"

func (n *Node) newContainerd() *Daemon {
	command := func() *exec.Cmd {
		dir := n.cluster.bin.ContainerdDir
		cmd := exec.Command(filepath.Join(dir, "containerd"), "--config=/etc/containerd/config.toml")
		// It finds its shim there.
		cmd.Env = append(environment(), "PATH="+dir+":"+os.Getenv("PATH"))
		cmd.Env = append(cmd.Env, n.ContainerdEnvironment...)
		return cmd
	}
	ready := func(ctx context.Context, _ *Process) error {
		if _, err := n.Ctr(ctx, "version"); err != nil {
			return err
		}
		return n.criReady(ctx)
	}
	return n.newDaemon("containerd", command, ready)
}

// criReady returns nil when CRI answers, which begins later than the rest of containerd: a kubelet
// that asks before ends.
func (n *Node) criReady(ctx context.Context) error {
	connection, err := grpc.NewClient("unix://"+n.ContainerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = cri.NewRuntimeServiceClient(connection).Version(ctx, &cri.VersionRequest{})
	return err
}

func (n *Node) containerdConfig() string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = %q
  # Mirrors serve layers as they were pulled.
  discard_unpacked_layers = false
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
  # The test may run where the score cannot be lowered.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = %q
      SystemdCgroup = false
`, n.options.Snapshotter, PauseImage, n.cluster.bin.AssetsDir, filepath.Join(n.cluster.bin.RuncDir, "runc"))
}

// cniConfig gives each Pod a cable to its node and an address that the whole
// cluster, and the host, reach.
func (n *Node) cniConfig() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "sluice",
  "plugins": [{
    "type": "ptp",
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": %q}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
`, n.podNetwork())
}

// WriteHostsTOML writes the hosts.toml that containerd uses for a registry
// ("docker.io", "10.200.0.3:5000", or "_default"). containerd reads it again
// for each pull.
func (n *Node) WriteHostsTOML(registry, content string) error {
	return writeFiles(n.CertsDir, map[string]string{filepath.Join(registry, "hosts.toml"): content})
}

// importPause brings the sandbox image to a node that is started for the first
// time.
func (n *Node) importPause(ctx context.Context) error {
	out, err := n.Ctr(ctx, "images", "list", "--quiet")
	if err != nil || strings.Contains(out, PauseImage) {
		return err
	}
	return n.Import(ctx, bytes.NewReader(n.cluster.pause))
}

// pauseArchive is the archive of the sandbox image.
func pauseArchive(bin Binaries) ([]byte, error) {
	image, err := images.Runnable(filepath.Join(bin.ownDir, "pause"))
	if err != nil {
		return nil, fmt.Errorf("make pause image: %w", err)
	}
	var archive bytes.Buffer
	if err := images.WriteArchive(&archive, PauseImage, image); err != nil {
		return nil, fmt.Errorf("write pause image: %w", err)
	}
	return archive.Bytes(), nil
}
