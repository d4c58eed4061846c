// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestEntryThatFailedOnTheMirror(t *testing.T) {
	retries := int32(3)
	entry := func(policy v1alpha1.RegistryPolicy, state v1alpha1.ImageState, reason string) Entry {
		return Entry{
			Wanted: &v1alpha1.NodeImage{Digest: "sha256:d", RegistryPolicy: policy, ImageDownloadRetryLimit: &retries},
			Status: &v1alpha1.NodeImageStatus{Digest: "sha256:d", State: state, Reason: reason},
		}
	}
	const mirror, upstream = v1alpha1.RegistryPolicyMirror, v1alpha1.RegistryPolicyDefault
	withoutSpec := entry(mirror, v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)
	withoutSpec.Wanted = nil
	withoutStatus := entry(mirror, v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)
	withoutStatus.Status = nil
	for _, c := range []struct {
		reason string
		entry  Entry
		want   bool
	}{
		{"the mirror does not have it", entry(mirror, v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror), true},
		{"a mirror that cannot be reached serves nothing either", entry(mirror, v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable), true},
		{"nor does one that hangs", entry(mirror, v1alpha1.ImageFailed, v1alpha1.ReasonNoProgress), true},
		{"a full disk is not the mirror's failure", entry(mirror, v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk), false},
		{"a node that may use the upstream has tried that", entry(upstream, v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable), false},
		{"an agent that still tries has not given up", entry(mirror, v1alpha1.ImagePending, v1alpha1.ReasonNotOnMirror), false},
		{"an image that the spec no longer names", withoutSpec, false},
		{"an agent that has not answered", withoutStatus, false},
	} {
		t.Run(c.reason, func(t *testing.T) {
			if got := c.entry.FailedOnMirror(); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
