// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/test/distribution"
	"github.com/sluice-dev/sluice/test/upstream"
)

// The proof takes what one seed asks for, and nothing that anybody asks for besides.
func TestWhoMayAskTheUpstream(t *testing.T) {
	const agent, seed, peersAgent, peer = "10.1.0.1", "10.0.0.1", "10.1.0.2", "10.0.0.2"
	nodes := map[string]string{agent: "node-1", seed: "node-1", peersAgent: "node-2", peer: "node-2"}
	pushed := map[string]stocked{"app:v1": {Digest: "sha256:m", Content: []string{"sha256:l", "sha256:m"}}}
	resolves := asked(agent, "sluice-agent", http.MethodHead, distribution.Tag, "sha256:m")
	manifest := asked(seed, "containerd", http.MethodGet, distribution.Manifest, "sha256:m")
	layer := asked(seed, "containerd", http.MethodGet, distribution.Blob, "sha256:l")
	cut := layer
	cut.Complete, cut.Bytes = false, 0
	refused := func(r upstream.Request) upstream.Request {
		r.Status, r.Complete, r.Bytes = http.StatusTooManyRequests, false, 0
		return r
	}
	for _, test := range []struct {
		reason   string
		requests upstream.Requests
		want     string
	}{
		{"a seed's agent and its containerd", upstream.Requests{resolves, manifest, layer}, ""},
		{"the agent of a peer asks too",
			upstream.Requests{resolves, manifest, layer, asked(peersAgent, "sluice-agent", http.MethodHead, distribution.Tag, "sha256:m")}, "wanted once"},
		{"another node's agent asks",
			upstream.Requests{asked(peersAgent, "sluice-agent", http.MethodHead, distribution.Tag, "sha256:m"), manifest, layer}, "containerd of node-1 asked"},
		{"a peer fetches a layer",
			upstream.Requests{resolves, manifest, layer, asked(peer, "containerd", http.MethodGet, distribution.Blob, "sha256:l")}, "to 2 nodes"},
		{"a peer fetches a layer in the seed's place",
			upstream.Requests{resolves, manifest, asked(peer, "containerd", http.MethodGet, distribution.Blob, "sha256:l")}, "containerd of node-2 asked for blob"},
		{"a peer asks for the manifest before the seed",
			upstream.Requests{resolves, asked(peer, "containerd", http.MethodHead, distribution.Manifest, "sha256:m"), manifest, layer},
			"containerd of node-2 asked for manifest"},
		{"a peer asks and is refused",
			upstream.Requests{resolves, manifest, layer, refused(asked(peer, "containerd", http.MethodGet, distribution.Blob, "sha256:l"))},
			"containerd of node-2 was refused blob"},
		{"the seed asks and is refused at first", upstream.Requests{resolves, manifest, refused(layer), layer}, "containerd of node-1 was refused blob"},
		{"a layer is begun twice", upstream.Requests{resolves, manifest, cut, layer}, "1 times in part"},
		{"a layer is missing", upstream.Requests{resolves, manifest}, "were not fetched"},
		{"a layer was never pushed",
			upstream.Requests{resolves, manifest, layer, asked(seed, "containerd", http.MethodGet, distribution.Blob, "sha256:x")}, "was not pushed"},
		{"a kubelet pulls by the tag",
			upstream.Requests{resolves, manifest, layer, asked(peer, "containerd", http.MethodHead, distribution.Tag, "sha256:m")}, "containerd of node-2 asked for tag"},
		{"a stranger asks",
			upstream.Requests{resolves, manifest, layer, asked("10.9.9.9", "curl", http.MethodGet, distribution.Ping, "")}, "which is no node"},
		{"nobody asks", nil, "were not fetched"},
	} {
		err := errors.Join(onlyOnce(slices.Clone(test.requests), pushed), oneNodeEach(test.requests, pushed, nodes))
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.reason, err, test.want)
		}
	}
}

// Images that share a layer may have different seeds: each may fetch the layer, and nothing of the
// other image besides.
func TestSeedsOfImagesThatShareALayer(t *testing.T) {
	nodes := map[string]string{"10.0.0.1": "node-1", "10.0.0.2": "node-2"}
	pushed := map[string]stocked{
		"app:v1": {Digest: "sha256:m1", Content: []string{"sha256:shared", "sha256:l1", "sha256:m1"}},
		"app:v2": {Digest: "sha256:m2", Content: []string{"sha256:shared", "sha256:l2", "sha256:m2"}},
	}
	resolved := upstream.Requests{
		asked("10.0.0.1", "sluice-agent", http.MethodHead, distribution.Tag, "sha256:m1"),
		asked("10.0.0.2", "sluice-agent", http.MethodHead, distribution.Tag, "sha256:m2"),
	}
	for _, client := range []string{"10.0.0.1", "10.0.0.2"} {
		for layer, want := range map[string]string{"sha256:shared": "", "sha256:l1": "node-1", "sha256:l2": "node-2"} {
			fetched := asked(client, "containerd", http.MethodGet, distribution.Blob, layer)
			err := oneNodeEach(append(slices.Clone(resolved), fetched), pushed, nodes)
			if may := want == "" || want == nodes[client]; may != (err == nil) {
				t.Errorf("%s fetches %s: %v", nodes[client], layer, err)
			}
		}
	}
}

func asked(client, program, method string, kind distribution.Kind, digest string) upstream.Request {
	r := upstream.Request{Client: client, UserAgent: program + "/v1", Method: method, Kind: kind, Digest: digest, Size: 1, Status: http.StatusOK}
	if method == http.MethodGet {
		r.Complete, r.Bytes = true, 1
	}
	return r
}
