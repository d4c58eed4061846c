// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Janitor claims what a cluster needs of the host (a name and a network) for
// its owner, and gives it back when its standard input ends: when the owner
// asks for that by closing the pipe, or ends in whatever way. It ignores the
// signals that end its owner.
//
// A claim is an abstract socket, which the kernel releases. So whoever claims
// a name may remove what an earlier janitor that was killed has left of it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/test/cluster/internal/cgroup"
	"github.com/sluice-dev/sluice/test/cluster/internal/claim"
)

// removeTimeout bounds the end of a cluster. Seconds suffice; a process stuck
// in the kernel must not block a test run for ever.
const removeTimeout = time.Minute

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "janitor:", err)
		os.Exit(1)
	}
}

func run() error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	owner := os.Getppid()
	c, release, err := take()
	if err != nil {
		return err
	}
	defer release()
	if err := remove(c, owner); err != nil {
		return fmt.Errorf("remove what an earlier cluster left: %w", err)
	}
	if err := errors.Join(os.Mkdir(c.Dir, 0o755), cgroup.Create(c.Name)); err != nil {
		return errors.Join(err, remove(c, owner))
	}
	if err := json.NewEncoder(os.Stdout).Encode(c); err != nil {
		return errors.Join(err, remove(c, owner))
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return remove(c, owner)
}

// take claims the first free index.
func take() (claim.Claim, func(), error) {
	used, err := networks()
	if err != nil {
		return claim.Claim{}, nil, fmt.Errorf("list networks of this host: %w", err)
	}
	// TMPDIR is often in memory, and images are large.
	parent := "/var/tmp"
	if dir := os.Getenv("TMPDIR"); dir != "" {
		parent = dir
	}
	for index := range claim.Max {
		c := claim.New(index, parent)
		socket, err := net.Listen("unix", "@"+c.Name)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return c, nil, fmt.Errorf("claim %s: %w", c.Name, err)
		}
		if !overlaps(c, used) {
			return c, func() { _ = socket.Close() }, nil
		}
		_ = socket.Close()
	}
	return claim.Claim{}, nil, fmt.Errorf("no free network in %s to %s", claim.New(0, "").Network(), claim.New(claim.Max-1, "").Network())
}

// network is one that the host has an address in, or a route to or through.
type network struct {
	net.IPNet
	dev string
}

func networks() ([]network, error) {
	out, err := exec.Command("ip", "-json", "-4", "route", "show", "table", "all").Output()
	if err != nil {
		return nil, err
	}
	return parseRoutes(out)
}

func parseRoutes(routes []byte) ([]network, error) {
	var entries []struct{ Dst, Gateway, Dev string }
	if err := json.Unmarshal(routes, &entries); err != nil {
		return nil, err
	}
	var used []network
	for _, entry := range entries {
		for _, address := range []string{entry.Dst, entry.Gateway} {
			if net.ParseIP(address) != nil {
				address += "/32"
			}
			if _, parsed, err := net.ParseCIDR(address); err == nil {
				used = append(used, network{IPNet: *parsed, dev: entry.Dev})
			}
		}
	}
	return used, nil
}

// overlaps reports whether the claim would take addresses from something that
// the host uses. A wide route, such as a VPN's to 10.0.0.0/8, is no obstacle:
// it only leads elsewhere for the addresses of the claim, while that lasts.
func overlaps(c claim.Claim, used []network) bool {
	own := c.Network()
	return slices.ContainsFunc(used, func(n network) bool {
		return n.dev != c.Name && own.Contains(n.IP) // a leftover of the same name goes before use
	})
}

// remove removes everything of a cluster, or nothing when there is nothing.
func remove(c claim.Claim, owner int) error {
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return errors.Join(
		cgroup.Remove(ctx, c.Name, owner), // first, for it ends the users of the rest
		removeLink(ctx, c.Name),
		os.RemoveAll(c.Dir),
	)
}

// removeLink removes the host's network interface, and with it its routes. The
// kernel would do so when the namespace of its peer goes, but later.
func removeLink(ctx context.Context, name string) error {
	if _, err := os.Stat(filepath.Join("/sys/class/net", name)); err != nil {
		return nil
	}
	out, err := exec.CommandContext(ctx, "ip", "link", "delete", name).CombinedOutput()
	// ip does not find it any more, or the kernel, which was quicker, does not.
	gone := bytes.Contains(out, []byte("Cannot find device")) || bytes.Contains(out, []byte("No such device"))
	if err != nil && !gone {
		return fmt.Errorf("delete interface %s: %w: %s", name, err, out)
	}
	return nil
}
