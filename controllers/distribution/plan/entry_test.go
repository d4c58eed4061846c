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

func TestWhatCountsAsProgress(t *testing.T) {
	status := func(edit func(*v1alpha1.NodeImageStatus)) *v1alpha1.NodeImageStatus {
		s := &v1alpha1.NodeImageStatus{State: v1alpha1.ImagePulling, Attempts: 1, Digest: "sha256:a", Request: "1", PulledBytes: 5, SizeBytes: 10}
		if edit != nil {
			edit(s)
		}
		return s
	}
	waits := func(s *v1alpha1.NodeImageStatus) { s.State, s.Attempts = v1alpha1.ImagePending, 0 }
	for _, tt := range []struct {
		reason        string
		before, after *v1alpha1.NodeImageStatus
		want          bool
	}{
		{"no report, as before", nil, nil, false},
		{"the first report", nil, status(nil), true},
		{"a report is gone", status(nil), nil, true},
		{"the same", status(nil), status(nil), false},
		{"it got its slot", status(waits), status(nil), true},
		{"it waits for its slot, as before", status(waits), status(waits), false},
		{"one try more", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.Attempts = 2 }), false},
		{"a try has failed", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.State = v1alpha1.ImageFailed }), false},
		{"it came", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.State = v1alpha1.ImagePresent }), true},
		{"it was deleted", status(func(s *v1alpha1.NodeImageStatus) { s.State = v1alpha1.ImagePresent }), status(nil), true},
		{"the registry has answered", status(func(s *v1alpha1.NodeImageStatus) { s.Digest = "" }), status(nil), true},
		{"it has answered again", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.Request = "2" }), true},
		{"bytes came", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.PulledBytes++ }), true},
		{"bytes were lost", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.PulledBytes-- }), false},
		{"more is known of its size", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.SizeBytes++ }), true},
		{"less is known of its size", status(nil), status(func(s *v1alpha1.NodeImageStatus) { s.SizeBytes-- }), false},
	} {
		if got := Progressed(Entry{Status: tt.before}, Entry{Status: tt.after}); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.reason, got, tt.want)
		}
	}
	asked := Entry{Wanted: &v1alpha1.NodeImage{Digest: "sha256:a"}, Status: status(nil)}
	asksElse := Entry{Wanted: &v1alpha1.NodeImage{Digest: "sha256:b"}, Status: status(nil)}
	if !Progressed(asked, asksElse) {
		t.Error("the spec asks something else: no progress, want some")
	}
}

// An image that is asked for again stays Present while its tag is asked about.
func TestWhetherAnAgentHasGivenUp(t *testing.T) {
	limit := int32(3)
	asked := &v1alpha1.NodeImage{Request: "2", ImageDownloadRetryLimit: &limit}
	unbounded := &v1alpha1.NodeImage{Request: "2"}
	status := func(state v1alpha1.ImageState, request, reason string, attempts int32) *v1alpha1.NodeImageStatus {
		return &v1alpha1.NodeImageStatus{State: state, Digest: "sha256:a", Request: request, Reason: reason, Attempts: attempts}
	}
	for _, tt := range []struct {
		reason string
		wanted *v1alpha1.NodeImage
		status *v1alpha1.NodeImageStatus
		want   bool
	}{
		{"no report", asked, nil, false},
		{"it says so", asked, status(v1alpha1.ImageFailed, "1", v1alpha1.ReasonNotOnMirror, 1), true},
		{"a pull that is refused now and is tried again", asked, status(v1alpha1.ImagePulling, "1", v1alpha1.ReasonImageNotFound, 9), false},
		{"it has asked, and was refused", asked, status(v1alpha1.ImagePresent, "1", v1alpha1.ReasonImageNotFound, 1), true},
		{"it has asked as often as it may try again", asked, status(v1alpha1.ImagePresent, "1", v1alpha1.ReasonRegistryUnavailable, 3), false},
		{"and once more", asked, status(v1alpha1.ImagePresent, "1", v1alpha1.ReasonRegistryUnavailable, 4), true},
		{"it may ask for ever", unbounded, status(v1alpha1.ImagePresent, "1", v1alpha1.ReasonRegistryUnavailable, 9), false},
		{"it has yet to ask", asked, status(v1alpha1.ImagePresent, "1", "", 9), false},
		{"it has the answer", asked, status(v1alpha1.ImagePresent, "2", v1alpha1.ReasonImageNotFound, 9), false},
	} {
		if got := (Entry{Wanted: tt.wanted, Status: tt.status}).Failed(); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.reason, got, tt.want)
		}
	}
}
