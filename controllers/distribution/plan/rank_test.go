// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestTheScoreOfASeed(t *testing.T) {
	failedAt := time.Unix(1, 0)
	present := func(digest string) *v1alpha1.NodeImageStatus {
		return &v1alpha1.NodeImageStatus{State: v1alpha1.ImagePresent, Digest: digest}
	}
	for _, tt := range []struct {
		reason        string
		failure       seedFailure
		siblingImages int
		digest        string
		status        *v1alpha1.NodeImageStatus
		failed        bool
		present       bool
	}{
		{reason: "never failed"},
		{reason: "refused", failure: seedFailure{at: failedAt, refused: true}, failed: true},
		{reason: "refused, and served a sibling image since", failure: seedFailure{at: failedAt, refused: true}, siblingImages: 1},
		{reason: "failed otherwise, whatever sibling images it has", failure: seedFailure{at: failedAt}, siblingImages: 1, failed: true},
		{reason: "has the digest", digest: "sha256:a", status: present("sha256:a"), present: true},
		{reason: "has another digest", digest: "sha256:a", status: present("sha256:b")},
		{reason: "has the tag, whose digest nobody knows yet", status: present("sha256:b"), present: true},
		{reason: "pulls the digest", digest: "sha256:a", status: &v1alpha1.NodeImageStatus{State: v1alpha1.ImagePulling, Digest: "sha256:a"}},
	} {
		im := &image{digest: tt.digest, history: imageHistory{failures: map[string]seedFailure{"n": tt.failure}}}
		p := &placement{node: &node{Node: &Node{Name: "n"}}, Entry: Entry{Status: tt.status}, requirements: &requirements{}}
		got := im.score(p, tt.siblingImages)
		if got.present != tt.present || got.failedAt.IsZero() == tt.failed {
			t.Errorf("%s: present %t, failed at %v", tt.reason, got.present, got.failedAt)
		}
	}
}
