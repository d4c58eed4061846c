// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Two images of a prefetch share layers. While their seed gets on with one of them, the other
// stays there: another node would fetch the shared layers again.
func TestImagesOfAPrefetchMoveTogether(t *testing.T) {
	const a, b = "reg/a@sha256:a", "reg/b@sha256:b"
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	pulls := func(name, digest string, idle time.Duration, edit func(*v1alpha1.NodeImageStatus)) Entry {
		status := &v1alpha1.NodeImageStatus{Name: name, Digest: digest, State: v1alpha1.ImagePulling, Attempts: 1, PulledBytes: 1, SizeBytes: 9}
		if edit != nil {
			edit(status)
		}
		return Entry{
			Wanted: &v1alpha1.NodeImage{
				Name: name, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyDefault, Retention: v1alpha1.RetentionPinned,
				ImageDownloadRetryLimit: new(int32),
			},
			Status: status, ChangedAt: now.Add(-idle), ProgressAt: now.Add(-idle),
		}
	}
	failed := func(reason string) func(*v1alpha1.NodeImageStatus) {
		return func(s *v1alpha1.NodeImageStatus) { s.State, s.Reason = v1alpha1.ImageFailed, reason }
	}
	present := func(s *v1alpha1.NodeImageStatus) { s.State = v1alpha1.ImagePresent }
	for _, tt := range []struct {
		reason string
		a, b   Entry
		apart  bool // the images are of prefetches that share none
		moves  []string
	}{
		{"one is stalled, the other gets on", pulls(a, "sha256:a", 3*time.Minute, nil), pulls(b, "sha256:b", time.Minute, nil), false, nil},
		{
			"one has failed, the other gets on",
			pulls(a, "sha256:a", time.Minute, failed(v1alpha1.ReasonPullFailed)), pulls(b, "sha256:b", time.Minute, nil), false, nil,
		},
		{"both are stalled", pulls(a, "sha256:a", 3*time.Minute, nil), pulls(b, "sha256:b", 3*time.Minute, nil), false, []string{a, b}},
		{"the other is there by now", pulls(a, "sha256:a", 3*time.Minute, nil), pulls(b, "sha256:b", time.Minute, present), false, []string{a}},
		{"it has waited long enough", pulls(a, "sha256:a", 9*time.Minute, nil), pulls(b, "sha256:b", time.Minute, nil), false, []string{a}},
		{
			"a refusal is about one image",
			pulls(a, "sha256:a", time.Minute, failed(v1alpha1.ReasonImageNotFound)), pulls(b, "sha256:b", time.Minute, nil), false, []string{a},
		},
		{"no prefetch has both", pulls(a, "sha256:a", 3*time.Minute, nil), pulls(b, "sha256:b", time.Minute, nil), true, []string{a}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			prefetches := []Prefetch{{Key: "team/x", UID: "x", Images: []string{a, b}}}
			if tt.apart {
				prefetches = []Prefetch{{Key: "team/x", UID: "x", Images: []string{a}}, {Key: "team/y", UID: "y", Images: []string{b}}}
			}
			state := State{Now: now, Prefetches: prefetches, Nodes: []Node{
				{Name: "n0", Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: map[string]Entry{a: tt.a, b: tt.b}},
				{Name: "n1", Platform: "linux/amd64", Ready: true, Acknowledged: true},
			}}
			left := map[string]bool{a: true, b: true}
			if set, changed := Next(state, DefaultLimits()).Sets["n0"]; changed {
				clear(left)
				for _, entry := range set {
					left[entry.Name] = entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault || entry.Name == b && tt.b.Status.State == v1alpha1.ImagePresent
				}
			}
			for _, name := range []string{a, b} {
				moves := false
				for _, moved := range tt.moves {
					moves = moves || moved == name
				}
				if left[name] == moves {
					t.Errorf("%s: stays with its seed %t, want %t", name, left[name], !moves)
				}
			}
		})
	}
}

// Agents see one after the other that an entry is gone. A node whose agent has not seen it yet of one
// image can be the seed of the other alone: the images would part.
func TestImagesThatMoveWaitForANodeThatCanTakeThemAll(t *testing.T) {
	const a, b = "reg/a@sha256:a", "reg/b@sha256:b"
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	since := now.Add(-DefaultLimits().SeedTimeout - time.Second)
	for _, acknowledged := range []bool{false, true} {
		stalled, gone := map[string]Entry{}, map[string]Entry{}
		for name, d := range map[string]string{a: "sha256:a", b: "sha256:b"} {
			stalled[name] = Entry{
				Wanted:    &v1alpha1.NodeImage{Name: name, Digest: d, RegistryPolicy: v1alpha1.RegistryPolicyDefault, Retention: v1alpha1.RetentionPinned},
				Status:    &v1alpha1.NodeImageStatus{Name: name, Digest: d, State: v1alpha1.ImagePulling, Attempts: 1},
				ChangedAt: since, ProgressAt: since,
			}
		}
		if !acknowledged {
			gone[b] = Entry{Status: &v1alpha1.NodeImageStatus{Name: b, Digest: "sha256:b", State: v1alpha1.ImageFailed, Reason: v1alpha1.ReasonNotOnMirror}}
		}
		step := Next(State{Now: now, Prefetches: []Prefetch{{Key: "team/x", UID: "x", Images: []string{a, b}}}, Nodes: []Node{
			{Name: "n0", Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: stalled},
			{Name: "n1", Platform: "linux/amd64", Ready: true, Acknowledged: acknowledged, HeardAt: now, Entries: gone},
		}}, DefaultLimits())
		left, want := 2, 2
		if acknowledged {
			want = 0
		}
		if set, changed := step.Sets["n0"]; changed {
			left = len(set)
		}
		if left != want {
			t.Errorf("the other node's agent has seen all %t: the seed is left with %d images, want %d", acknowledged, left, want)
		}
	}
}
