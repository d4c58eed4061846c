// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/test/distribution"
	"github.com/sluice-dev/sluice/test/install"
	"github.com/sluice-dev/sluice/test/upstream"
)

// prove prints what the upstream registry was asked for and by whom, and checks both: all that was
// pushed went over the uplink once, and for each image one node asked.
func (s *show) prove(ctx context.Context) error {
	requests, err := upstream.Read(ctx, http.DefaultClient, s.Upstream)
	if err != nil {
		return err
	}
	nodes, err := s.addresses(ctx)
	if err != nil {
		return err
	}
	fmt.Print("\n== What the upstream registry was asked for, by whom\n\n")
	if err := requests.Report(os.Stdout, nodes); err != nil {
		return err
	}
	fmt.Println()
	if err := reportAskers(os.Stdout, requests, nodes); err != nil {
		return err
	}
	if err := errors.Join(onlyOnce(requests, s.Images), oneNodeEach(requests, s.Images, nodes)); err != nil {
		return err
	}
	fmt.Printf("\nEach of the %d manifests and blobs that were pushed was fetched from upstream once. For each image\n"+
		"one node asked: its agent what the tag means, and its containerd for the content.\n", len(requests.Tallies()))
	return nil
}

// addresses are the nodes' names by the addresses of the nodes and of their agents' Pods.
func (s *show) addresses(ctx context.Context) (map[string]string, error) {
	var agents corev1.PodList
	err := s.client.List(ctx, &agents, client.InNamespace(install.Namespace), client.MatchingLabels{"app.kubernetes.io/component": "agent"})
	if err != nil {
		return nil, err
	}
	nodes := maps.Clone(s.Nodes)
	for _, pod := range agents.Items {
		nodes[pod.Status.PodIP] = pod.Spec.NodeName
	}
	return nodes, nil
}

// programOf is the program that sent a request, by its own word.
func programOf(r upstream.Request) string {
	program, _, _ := strings.Cut(r.UserAgent, "/")
	return program
}

// reportAskers prints a line for each client.
func reportAskers(w io.Writer, requests upstream.Requests, nodes map[string]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ADDRESS\tNODE\tPROGRAM\tASKED")
	for _, address := range requests.Clients() {
		counts, programs := map[string]int{}, map[string]bool{}
		for _, r := range requests {
			if r.Client == address {
				counts[r.Method+" "+string(r.Kind)]++
				programs[programOf(r)] = true
			}
		}
		var asked []string
		for _, what := range slices.Sorted(maps.Keys(counts)) {
			asked = append(asked, fmt.Sprintf("%d %s", counts[what], what))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", address, nodes[address],
			strings.Join(slices.Sorted(maps.Keys(programs)), ", "), strings.Join(asked, ", "))
	}
	return table.Flush()
}

// onlyOnce fails unless each piece of what was pushed went over the uplink once, whole, and nothing
// else did.
func onlyOnce(requests upstream.Requests, pushed map[string]stocked) error {
	missing := map[string]bool{}
	for _, image := range pushed {
		for _, digest := range image.Content {
			missing[digest] = true
		}
	}
	for _, t := range requests.Tallies() {
		if !missing[t.Digest] {
			return fmt.Errorf("%s of %s was not pushed", t.Digest, t.Repository)
		}
		if t.Complete != 1 || t.Partial != 0 || len(t.Clients) != 1 {
			return fmt.Errorf("%s of %s was sent %d times whole and %d times in part, to %d nodes; wanted once, to one",
				t.Digest, t.Repository, t.Complete, t.Partial, len(t.Clients))
		}
		delete(missing, t.Digest)
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d manifests and blobs that were pushed were not fetched", len(missing))
	}
	return nil
}

// oneNodeEach fails unless an agent asked once what each tag means, and only the containerd of its
// node, the seed of the image, asked for the content. The seed of any image with a layer may ask
// for that layer. A refused request fails, too.
func oneNodeEach(requests upstream.Requests, pushed map[string]stocked, nodes map[string]string) error {
	resolvers := map[string][]string{} // by digest of the image
	for _, r := range requests {
		if programOf(r) == "sluice-agent" && r.Kind == distribution.Tag {
			resolvers[r.Digest] = append(resolvers[r.Digest], nodes[r.Client])
		}
	}
	seeds := map[string][]string{} // by digest of the content
	for _, image := range pushed {
		for _, digest := range image.Content {
			seeds[digest] = append(seeds[digest], resolvers[image.Digest]...)
		}
	}
	for _, r := range requests {
		node, program := nodes[r.Client], programOf(r)
		ofContent := r.Kind == distribution.Manifest || r.Kind == distribution.Blob
		switch {
		case node == "":
			return fmt.Errorf("%s, which is no node, asked for %s %s of %s", r.Client, r.Kind, r.Reference, r.Repository)
		case r.Status/100 != 2:
			return fmt.Errorf("%s of %s was refused %s %s of %s: status %d", program, node, r.Kind, r.Reference, r.Repository, r.Status)
		case program == "sluice-agent" && r.Kind == distribution.Tag:
		case program == "containerd" && ofContent && slices.Contains(seeds[r.Digest], node):
		default:
			return fmt.Errorf("%s of %s asked for %s %s of %s; wanted only the seeds %q", program, node, r.Kind, r.Reference, r.Repository, seeds[r.Digest])
		}
	}
	for name, image := range pushed {
		if asked := resolvers[image.Digest]; len(asked) != 1 {
			return fmt.Errorf("the agents of %q asked what %s means; wanted once, of one node", asked, name)
		}
	}
	return nil
}
