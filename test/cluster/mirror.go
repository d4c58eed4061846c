// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// mirrorPort is where mirrors listen, each at its node's address.
const mirrorPort = "5000"

// Mirror is a peer-to-peer mirror that runs on every node. It is started again
// when it ends by itself, as the kubelet does with Spegel's Pod: Spegel ends when
// its containerd does.
type Mirror struct {
	// Command is what to run on a node.
	Command func(n *Node) *exec.Cmd
	// Ready, if not nil, returns nil when the node's mirror answers.
	Ready func(ctx context.Context, n *Node) error
}

// MirrorURL is where containerd and the agent find the node's mirror.
func (n *Node) MirrorURL() string { return "http://" + n.IP + ":" + mirrorPort }

// DefaultMirror is Spegel if the environment variable SPEGEL names its binary,
// and test/peermirror otherwise, built if needed. Further arguments are for
// test/peermirror alone, such as --behave=well.
func DefaultMirror(ctx context.Context, logf func(format string, args ...any), args ...string) (*Mirror, error) {
	if binary := os.Getenv("SPEGEL"); binary != "" {
		return Spegel(binary), nil
	}
	dir, err := mirrorSet.build(ctx, logf)
	if err != nil {
		return nil, err
	}
	return PeerMirror(filepath.Join(dir, "peermirror"), args...), nil
}

// PeerMirror runs test/peermirror.
func PeerMirror(binary string, args ...string) *Mirror {
	return &Mirror{
		Ready: mirrorAnswers,
		Command: func(n *Node) *exec.Cmd {
			flags := []string{
				"--registry-addr=" + n.IP + ":" + mirrorPort,
				"--metrics-addr=" + n.IP + ":9090",
				"--peers-file=" + n.cluster.peersFile(),
			}
			return exec.Command(binary, append(flags, args...)...)
		},
	}
}

// Spegel runs the real Spegel, v0.7. Each node finds the others through
// another one.
func Spegel(binary string) *Mirror {
	return &Mirror{
		Ready: mirrorAnswers,
		Command: func(n *Node) *exec.Cmd {
			return exec.Command(binary, "registry",
				"--registry-addr="+n.IP+":"+mirrorPort, "--router-addr="+n.IP+":5001", "--metrics-addr="+n.IP+":9090",
				"--containerd-sock=/run/containerd/containerd.sock", "--containerd-namespace=k8s.io",
				"--containerd-content-path=/var/lib/containerd/io.containerd.content.v1.content",
				"--data-dir=/run/spegel",
				"--mirror-resolve-timeout=2s", "--mirror-resolve-retries=3",
				"--bootstrap-kind=http", "--http-bootstrap-addr="+n.IP+":5002",
				"--http-bootstrap-peer=http://"+n.neighbour().IP+":5002",
			)
		},
	}
}

// neighbour is the first node, or the second for that.
func (n *Node) neighbour() *Node {
	for _, other := range n.cluster.Nodes() {
		if other != n {
			return other
		}
	}
	return n
}

// mirrorAnswers asks for what a mirror serves even without peers, on which
// Spegel's readiness depends.
func mirrorAnswers(ctx context.Context, n *Node) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.MirrorURL()+"/v2/", nil)
	if err != nil {
		return err
	}
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	if response.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("the mirror answers %s", response.Status))
	}
	return errors.Join(err, response.Body.Close())
}

func (n *Node) newMirror(mirror *Mirror) *Daemon {
	command := func() *exec.Cmd { return mirror.Command(n) }
	ready := func(ctx context.Context, _ *Process) error {
		if mirror.Ready == nil {
			return nil
		}
		return mirror.Ready(ctx, n)
	}
	daemon := n.newDaemon("mirror", command, ready)
	daemon.restarts = true
	return daemon
}

// peersFile lists the mirrors of all nodes, now and later.
func (c *Cluster) peersFile() string { return filepath.Join(c.Dir, "peers") }

// writePeers replaces the file in one step, because it is read at any time.
// The caller has the lock.
func (c *Cluster) writePeers() error {
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, n.MirrorURL())
	}
	next := c.peersFile() + ".next"
	if err := os.WriteFile(next, []byte(strings.Join(urls, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(next, c.peersFile())
}
