// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster runs real clusters on one Linux host, for tests and for the
// demo: etcd, the API server, the controller manager and the scheduler, and any
// number of nodes with a containerd, a kubelet and a mirror each. It builds all
// of them from the Go modules under binaries. It needs root, and some Debian
// packages that it names when they are missing.
//
//	c, err := cluster.Start(ctx, cluster.Options{Nodes: cluster.Nodes(3)})
//	...
//	defer c.Stop()
//	registry, err := net.Listen("tcp", net.JoinHostPort(c.GatewayIP, "5000"))
//	...
//	node := c.Nodes()[0]
//	node.WriteHostsTOML("_default", "server = ...")
//	agent, err := node.Start("agent", exec.Command("/path/to/sluice-agent", "--node-name="+node.Name))
//	...
//	agent.Kill()
//	node.Containerd.Stop()
//	node.Containerd.Start(ctx)
//	node.PowerOff()
//
// With Options.ContainerdOnly there are nodes with containerd and nothing else,
// within half a second; tests of the agent want no more.
//
// # Nodes
//
// A node is a PID, a mount and a network namespace. Its programs see the usual
// paths and ports, each node its own: /run/containerd/containerd.sock,
// /etc/containerd/certs.d, /var/lib/kubelet. The test sees the same files under
// Node.Dir and connects to containerd at Node.ContainerdSocket, to anything
// else at Node.IP, and to Pods at their addresses. Files outside those places
// are the host's, so that a node can run any program of the host.
//
// # Network
//
// Nodes, Pods, the API server and this host reach each other, and nobody else:
// there are no routes that leave the host, and no name server. On nodes the
// names of all well-known registries, docker.io among them, are those of the
// gateway. That is this host, so a listener of the test on Cluster.GatewayIP
// sees everything that a node asks an upstream for, and what should not have
// been asked.
//
// # The end
//
// Nothing is left when a cluster ends, but a limit that was raised (see raiseLimits).
// A cluster ends with the process that started it, in whatever way that happens: the
// init of each machine ends when its pipe to the owner breaks, and the kernel kills
// what is in its PID namespace and drops its mounts and its network; the janitor then
// removes control groups, the host's network interface and files.
package cluster
