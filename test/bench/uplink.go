// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"

	"github.com/sluice-dev/sluice/test/cluster"
)

// narrow shapes what this host sends into the cluster, which is what the upstream
// registry sends, and the requests of this program, which are small. What nodes send to
// each other, to the API server and to their mirrors does not pass there.
func narrow(ctx context.Context, c *cluster.Cluster, mbit int) error {
	device, err := deviceOf(c.GatewayIP)
	if err != nil {
		return err
	}
	// A queue of 50 ms is long enough for TCP to fill the link. The burst is what a
	// packet may be before the kernel segments it.
	args := []string{"qdisc", "replace", "dev", device, "root", "tbf",
		"rate", fmt.Sprintf("%dmbit", mbit), "burst", "64kb", "latency", "50ms"}
	if out, err := exec.CommandContext(ctx, "tc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tc %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// deviceOf is the interface with that address. It goes with the cluster, and its
// queue with it.
func deviceOf(ip string) (string, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, device := range devices {
		addresses, err := device.Addrs()
		if err != nil {
			return "", err
		}
		for _, address := range addresses {
			if network, ok := address.(*net.IPNet); ok && network.IP.String() == ip {
				return device.Name, nil
			}
		}
	}
	return "", fmt.Errorf("no interface has the address %s", ip)
}
