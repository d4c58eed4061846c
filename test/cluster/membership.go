// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/sluice-dev/sluice/test/cluster/internal/cgroup"
)

// AddNode adds a node and starts it. With a control plane it returns when the
// node is Ready.
func (c *Cluster) AddNode(ctx context.Context, opts NodeOptions) (*Node, error) {
	n, err := c.reserve(opts)
	if err != nil {
		return nil, err
	}
	return n, n.PowerOn(ctx)
}

// reserve enters a node that is to be started. Its number, and so its
// addresses, are never given to another.
func (c *Cluster) reserve(opts NodeOptions) (*Node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == maxNodes {
		return nil, fmt.Errorf("add node: a cluster has at most %d in its life", maxNodes)
	}
	n := c.newNode(c.next, opts)
	if slices.ContainsFunc(c.nodes, func(other *Node) bool { return other.Name == n.Name }) {
		return nil, fmt.Errorf("add node: there is a %s already", n.Name)
	}
	c.next++
	c.nodes = append(c.nodes, n)
	return n, c.writePeers()
}

// RemoveNode removes a node for good, with its disk. Its Node object is the
// caller's to delete, for a cluster does not learn of such a loss either.
func (c *Cluster) RemoveNode(ctx context.Context, n *Node) error {
	n.PowerOff()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = slices.DeleteFunc(c.nodes, func(other *Node) bool { return other == n })
	return errors.Join(
		c.writePeers(),
		cgroup.Remove(ctx, n.cgroup(), os.Getpid()),
		os.RemoveAll(n.Dir),
	)
}
