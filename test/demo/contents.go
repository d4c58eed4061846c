// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/sluice-dev/sluice/test/cluster"
)

// contents is what the containerd of each node has, by node and by name of the image.
type contents map[string]map[string]cluster.Image

// serveContents answers on a socket what the nodes have under the names: only the supervisor gets
// at their containerds. stop ends it.
func serveContents(socket string, c *cluster.Cluster, names []string) (stop func() error, err error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		all := contents{}
		for _, node := range c.Nodes() {
			found, err := node.Images(r.Context(), names...)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			all[node.Name] = found
		}
		_ = json.NewEncoder(w).Encode(all) // it fails if the client is gone
	}
	server := &http.Server{Handler: http.HandlerFunc(handler), ReadHeaderTimeout: bound}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return func() error {
		err := server.Close()
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}

// readContents asks the supervisor what the nodes have.
func (i *clusterInfo) readContents(ctx context.Context) (contents, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", i.Contents)
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://supervisor/", nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask what the nodes have: %s", response.Status)
	}
	var all contents
	return all, json.NewDecoder(response.Body).Decode(&all)
}

// onEveryNode prints what the nodes have under the names, and fails unless that is what was pushed,
// complete and unpacked.
func (s *show) onEveryNode(ctx context.Context, names ...string) error {
	found, err := s.readContents(ctx)
	if err != nil {
		return err
	}
	fmt.Print("\nWhat containerd has, by `ctr images check`, is what was pushed:\n\n")
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tIMAGE\tDIGEST\tCONTENT\tUNPACKED")
	for _, node := range s.nodeNames() {
		for _, name := range names {
			image := found[node][name]
			fmt.Fprintf(table, "%s\t%s\t%.19s\t%s\t%t\n", node, name, image.Digest, image.Content, image.Unpacked)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return s.compare(found, names)
}

// compare fails unless each node has each of the images as it was pushed.
func (i *clusterInfo) compare(found contents, names []string) error {
	for _, node := range i.nodeNames() {
		for _, name := range names {
			want := i.Images[name].Digest
			switch got, ok := found[node][name]; {
			case want == "":
				return fmt.Errorf("%s was never pushed", name)
			case !ok:
				return fmt.Errorf("%s has no %s", node, name)
			case got.Digest != want || !got.Usable():
				return fmt.Errorf("%s has %s as %s, and %s was pushed", node, name, got, want)
			}
		}
	}
	return nil
}

// nodeNames are sorted.
func (i *clusterInfo) nodeNames() (names []string) {
	for _, name := range i.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
