// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/test/cluster"
)

func TestNodesAreComparedWithWhatWasPushed(t *testing.T) {
	w := &clusterInfo{
		Nodes:  map[string]string{"10.0.0.1": "node-1", "10.0.0.2": "node-2"},
		Images: map[string]stocked{"app:v1": {Digest: "sha256:a"}},
	}
	good := cluster.Image{Digest: "sha256:a", Content: "complete (3/3)", Unpacked: true}
	for _, test := range []struct {
		reason string
		second cluster.Image
		names  []string
		want   string
	}{
		{"every node has it", good, []string{"app:v1"}, ""},
		{"all nodes may agree on an image that was not pushed",
			cluster.Image{Digest: "sha256:b", Content: "complete (3/3)", Unpacked: true}, []string{"app:v1"},
			"node-2 has app:v1 as sha256:b, and sha256:a was pushed"},
		{"a record is not the content",
			cluster.Image{Digest: "sha256:a", Content: "incomplete (2/3)", Unpacked: true}, []string{"app:v1"}, "incomplete (2/3)"},
		{"content is not a snapshot", cluster.Image{Digest: "sha256:a", Content: "complete (3/3)"}, []string{"app:v1"}, "not unpacked"},
		{"nothing is there under the name", cluster.Image{}, []string{"app:v1"}, "node-2 has no app:v1"},
		{"what is not known is not taken for good", good, []string{"app:v2"}, "app:v2 was never pushed"},
	} {
		found := contents{"node-1": {"app:v1": good}, "node-2": {"app:v1": test.second}}
		if test.second == (cluster.Image{}) {
			delete(found["node-2"], "app:v1")
		}
		err := w.compare(found, test.names)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.reason, err, test.want)
		}
	}
}
