// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// stateOf is a cluster of nodes whose entries for one image are given, of a prefetch of that image.
func stateOf(now time.Time, entries ...*Entry) State {
	state := State{Now: now, Prefetches: []Prefetch{{Key: "team/x", UID: "x", Images: []string{waveImage}}}}
	for i, entry := range entries {
		node := Node{Name: fmt.Sprintf("n%03d", i), Platform: "linux/amd64", Ready: true, Acknowledged: true}
		if entry != nil {
			node.Entries = map[string]Entry{waveImage: *entry}
		}
		state.Nodes = append(state.Nodes, node)
	}
	return state
}

// peerEntry is of a node that is to have the image from the mirror, and has received that much of it.
func peerEntry(now time.Time, received, size int64) *Entry {
	e := &Entry{
		Wanted: &v1alpha1.NodeImage{Name: waveImage, Digest: waveDigest, RegistryPolicy: v1alpha1.RegistryPolicyMirror, Retention: v1alpha1.RetentionPinned},
		Status: &v1alpha1.NodeImageStatus{
			Name: waveImage, Digest: waveDigest, State: v1alpha1.ImagePulling, Attempts: 1, PulledBytes: received, SizeBytes: size,
		},
		ChangedAt: now, ProgressAt: now,
	}
	if received == size {
		e.Status.State, e.Status.Source = v1alpha1.ImagePresent, v1alpha1.SourceMirror
	}
	return e
}
