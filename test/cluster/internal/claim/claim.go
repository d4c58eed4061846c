// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim names what a cluster takes of its host: one control group in
// each hierarchy, one network interface with one network, one folder.
package claim

import (
	"fmt"
	"net"
	"path/filepath"
)

// Max is how many clusters one host can run at the same time.
const Max = 50

// firstOctet begins a range that few private networks use.
const firstOctet = 200

// Claim is all that a cluster takes of its host.
type Claim struct {
	// Index is less than Max, and of one cluster at a time.
	Index int
	// Name is that of the control group and of the host's network interface.
	Name string
	// Dir has all files of the cluster.
	Dir string
}

// New returns the claim of that index, with its folder in parent.
func New(index int, parent string) Claim {
	name := fmt.Sprintf("sluice%d", index)
	return Claim{Index: index, Name: name, Dir: filepath.Join(parent, name)}
}

// Network has the addresses of hosts, Services and Pods.
func (c Claim) Network() *net.IPNet {
	return &net.IPNet{IP: c.IP(0, 0), Mask: net.CIDRMask(16, 32)}
}

// IP is an address of the network.
func (c Claim) IP(subnet, host byte) net.IP {
	return net.IPv4(10, firstOctet+byte(c.Index), subnet, host).To4()
}
