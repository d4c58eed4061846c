// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"fmt"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/peermirror"
)

// configureMirrors writes the node's hosts.toml for our registry as Spegel
// writes it, and one for Docker Hub whose server line names another host than
// the images do: that host is an alias, and must not be asked by a peer either.
// The names of both lead to the upstream registry of the test.
func configureMirrors(n *cluster.Node) error {
	if err := peermirror.WriteConfiguration(n.CertsDir, []string{"http://" + Registry}, []string{n.MirrorURL()}, true); err != nil {
		return err
	}
	return n.WriteHostsTOML("docker.io", fmt.Sprintf(
		"server = 'http://registry-1.docker.io'\n\n[host.'%s']\ncapabilities = ['pull', 'resolve']\n", n.MirrorURL()))
}
