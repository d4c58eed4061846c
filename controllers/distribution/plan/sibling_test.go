// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
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
		{
			"the other has just come: mirrors do not find it yet",
			pulls(a, "sha256:a", 3*time.Minute, nil), pulls(b, "sha256:b", time.Second, func(s *v1alpha1.NodeImageStatus) {
				s.State, s.Source = v1alpha1.ImagePresent, v1alpha1.SourceUpstream
			}), false, nil,
		},
		{"it has waited long enough", pulls(a, "sha256:a", 9*time.Minute, nil), pulls(b, "sha256:b", time.Minute, nil), false, []string{a}},
		{
			"one was refused, which may be a mistake of the registry's; the other gets on",
			pulls(a, "sha256:a", time.Second, failed(v1alpha1.ReasonImageNotFound)), pulls(b, "sha256:b", time.Minute, nil), false, nil,
		},
		{
			"after a while it is asked for again, by the same node",
			pulls(a, "sha256:a", refusalBackoff, failed(v1alpha1.ReasonImageNotFound)), pulls(b, "sha256:b", time.Minute, nil), false, []string{a},
		},
		{
			"one was refused, the other is there by now",
			pulls(a, "sha256:a", time.Minute, failed(v1alpha1.ReasonImageNotFound)), pulls(b, "sha256:b", time.Minute, present), false, []string{a},
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
			step := Next(state, DefaultLimits())
			takesOver := slices.ContainsFunc(step.Sets["n1"], func(e v1alpha1.NodeImage) bool { return e.Name == a })
			if v1alpha1.IsRefusal(tt.a.Status.Reason) && tt.b.Status.State == v1alpha1.ImagePulling && takesOver {
				t.Error("the other node takes over")
			}
			if set, changed := step.Sets["n0"]; changed {
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

// A tag that could not be resolved would be resolved by another node, which then pulls what it means.
func TestATagIsResolvedWhereItsSiblingIsPulled(t *testing.T) {
	const a, b = "reg/a@sha256:a", "reg/b:1"
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, sibling := range []v1alpha1.ImageState{v1alpha1.ImagePulling, v1alpha1.ImagePresent} {
		prefetch := Prefetch{Key: "team/x", UID: "x", Images: []string{a, b}}
		entry := func(name, digest string, state v1alpha1.ImageState, reason string) Entry {
			e := Entry{
				Wanted:    &v1alpha1.NodeImage{Name: name, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyDefault, Retention: v1alpha1.RetentionPinned},
				Status:    &v1alpha1.NodeImageStatus{Name: name, Digest: digest, State: state, Reason: reason, Attempts: 1, SizeBytes: 9, PulledBytes: 1},
				ChangedAt: now.Add(-time.Second), ProgressAt: now.Add(-time.Second),
			}
			if digest == "" {
				e.Wanted.Request = newRequestID(prefetch.UID, prefetch.Generation, prefetch.Refresh)
			}
			return e
		}
		step := Next(State{Now: now, Prefetches: []Prefetch{prefetch}, Nodes: []Node{
			{Name: "n0", Platform: "linux/amd64", Ready: true, Acknowledged: true, Entries: map[string]Entry{
				a: entry(a, "sha256:a", sibling, ""), b: entry(b, "", v1alpha1.ImageFailed, v1alpha1.ReasonImageNotFound),
			}},
			{Name: "n1", Platform: "linux/amd64", Ready: true, Acknowledged: true},
		}}, DefaultLimits())
		left := true
		if set, changed := step.Sets["n0"]; changed {
			left = false
			for _, e := range set {
				left = left || e.Name == b
			}
		}
		if left != (sibling == v1alpha1.ImagePulling) {
			t.Errorf("the sibling is %s: the tag stays with its resolver %t", sibling, left)
		}
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
