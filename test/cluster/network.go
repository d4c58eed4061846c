// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
)

// The network of a cluster is 10.x.0.0/16, one bridge in the control plane's
// namespace. The control plane routes between nodes, Pods and host; nobody has
// a default route, so that no packet leaves the host.
//
//	10.x.0.1         control plane
//	10.x.0.2         host, as nodes see its connections
//	10.x.0.3         host, for what nodes connect to: the gateway
//	10.x.0.(11+i)    node i
//	10.x.1.0/24      Services (10.x.1.1 is the API server's)
//	10.x.(16+i).0/24 Pods of node i
//
// The host has two addresses so that a node can be cut off from the registry
// at the gateway, and still be watched by the test.
const (
	nodeSubnet    = 0
	serviceSubnet = 1
	podSubnet     = 16
	controlHost   = 1
	hostHost      = 2
	gatewayHost   = 3
	// apiServiceHost is the first address of Services, which Kubernetes
	// gives to the API server.
	apiServiceHost = 1
	nodeHost       = 11

	maxNodes = 200
)

const bridge = "br0"

// controlMAC is the bridge's own address. Without one a bridge takes that of a
// port, and changes it when ports come and go.
const controlMAC = "02:00:00:00:00:01"

// nowhereMAC belongs to nobody. What is sent there is lost without an answer,
// as on a network that is cut.
const nowhereMAC = "02:00:00:00:ff:ff"

func prefixed(ip net.IP) string { return ip.String() + "/24" }

// connectControlPlane makes the bridge, and connects the host to it.
func (c *Cluster) connectControlPlane(ctx context.Context) error {
	control := strconv.Itoa(c.control.init.Process.Pid)
	if err := ip(ctx, 0, fmt.Sprintf("link add %s type veth peer name host netns %s", c.claim.Name, control)); err != nil {
		return err
	}
	if _, err := c.control.run(ctx, strings.NewReader("1"), "tee", "/proc/sys/net/ipv4/ip_forward"); err != nil {
		return err
	}
	net16 := c.claim.Network().String()
	controlIP := c.claim.IP(nodeSubnet, controlHost)
	if err := ip(ctx, c.control.init.Process.Pid,
		"link set lo up",
		"link add "+bridge+" address "+controlMAC+" type bridge",
		"link set host master "+bridge+" up",
		"link set "+bridge+" up",
		"address add "+prefixed(controlIP)+" dev "+bridge,
		"route add unreachable "+net16,
		// So the API server is found at its Service without a kube-proxy.
		fmt.Sprintf("address add %s/32 dev %s", c.claim.IP(serviceSubnet, apiServiceHost), bridge),
	); err != nil {
		return err
	}
	return ip(ctx, 0,
		"address add "+prefixed(c.claim.IP(nodeSubnet, hostHost))+" dev "+c.claim.Name,
		"address add "+prefixed(c.claim.IP(nodeSubnet, gatewayHost))+" dev "+c.claim.Name,
		"link set "+c.claim.Name+" up",
		fmt.Sprintf("route add %s via %s", net16, controlIP),
	)
}

// connect plugs the node's machine into the bridge.
func (n *Node) connect(ctx context.Context) error {
	control, node := n.cluster.control.init.Process.Pid, n.machine.init.Process.Pid
	claim := n.cluster.claim
	if err := ip(ctx, control,
		fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %d", n.port(), n.mac(), node),
		"link set "+n.port()+" master "+bridge+" up",
		fmt.Sprintf("route replace %s via %s", n.podNetwork(), n.IP),
	); err != nil {
		return err
	}
	return ip(ctx, node,
		"link set lo up",
		"address add "+n.IP+"/24 dev eth0",
		"link set eth0 up",
		fmt.Sprintf("route add %s via %s", claim.Network(), claim.IP(nodeSubnet, controlHost)),
	)
}

// port is the bridge's port with the node's cable. The kernel limits names to 15 bytes.
func (n *Node) port() string { return fmt.Sprintf("node%d", n.index) }

// mac stays the same over power failures, or others would take a while to find
// the node again.
func (n *Node) mac() string { return fmt.Sprintf("02:00:00:00:01:%02x", n.index) }

func (n *Node) podNetwork() string {
	return prefixed(n.cluster.claim.IP(podSubnet+byte(n.index), 0))
}

// Disconnect unplugs the node's network cable: what is sent either way is lost.
func (n *Node) Disconnect(ctx context.Context) error {
	return ip(ctx, n.cluster.control.init.Process.Pid, "link set "+n.port()+" down")
}

// Connect plugs the cable back in after Disconnect.
func (n *Node) Connect(ctx context.Context) error {
	return ip(ctx, n.cluster.control.init.Process.Pid, "link set "+n.port()+" up")
}

// DisconnectGateway cuts the node off from the gateway, where the upstream
// registry is: what it sends there is lost. Other nodes, the API server and
// the test still reach it, and it them.
func (n *Node) DisconnectGateway(ctx context.Context) error {
	return ip(ctx, n.machine.init.Process.Pid,
		fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", n.cluster.GatewayIP, nowhereMAC))
}

// ConnectGateway ends DisconnectGateway.
func (n *Node) ConnectGateway(ctx context.Context) error {
	return ip(ctx, n.machine.init.Process.Pid, fmt.Sprintf("neigh del %s dev eth0", n.cluster.GatewayIP))
}

// ip runs commands of ip(8) in the network namespace of the process; 0 is the
// host's.
func ip(ctx context.Context, pid int, commands ...string) error {
	args := []string{"ip", "-batch", "-"}
	if pid != 0 {
		args = append([]string{"nsenter", "--net=/proc/" + strconv.Itoa(pid) + "/ns/net"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %q: %w: %s", commands, err, out)
	}
	return nil
}
