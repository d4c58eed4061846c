// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/sluice-dev/sluice/test/cluster/internal/claim"
)

func TestOverlaps(t *testing.T) {
	c := claim.New(3, "/var/tmp") // 10.203.0.0/16
	for _, tc := range []struct {
		reason string
		routes string
		want   bool
	}{
		{"a default route is everywhere", `[{"dst":"default","gateway":"192.0.2.1","dev":"eth0"}]`, false},
		{"a VPN's wide route takes second place", `[{"dst":"10.0.0.0/8","gateway":"192.0.2.9","dev":"tun0"}]`, false},
		{"another cluster has another network", `[{"dst":"10.202.0.0/16","gateway":"10.202.0.1","dev":"sluice2"}]`, false},
		{"what an earlier cluster of the name left is removed first", `[{"dst":"10.203.0.0/16","dev":"sluice3"}]`, false},
		{"the same network belongs to something else", `[{"dst":"10.203.0.0/16","dev":"docker0"}]`, true},
		{"a part of it belongs to something else", `[{"dst":"10.203.7.0/24","dev":"eth1"}]`, true},
		{"the host has an address in it", `[{"type":"local","dst":"10.203.4.5","dev":"eth0"}]`, true},
		{"the way out leads through it", `[{"dst":"default","gateway":"10.203.0.1","dev":"eth0"}]`, true},
	} {
		used, err := parseRoutes([]byte(tc.routes))
		if err != nil {
			t.Fatal(err)
		}
		if got := overlaps(c, used); got != tc.want {
			t.Errorf("%s: overlaps = %t, want %t", tc.reason, got, tc.want)
		}
	}
}
