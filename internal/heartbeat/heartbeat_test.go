// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package heartbeat_test

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/heartbeat"
)

const agentTimeout = time.Minute

func at(seconds int) time.Time { return time.Date(2030, 1, 2, 3, 4, seconds, 0, time.UTC) }

// asks is a set whose agent has taken up its first spec.
func asks(generation int64, state v1alpha1.ImageState, change ...func(*v1alpha1.NodeImageSetStatus)) *v1alpha1.NodeImageSet {
	set := &v1alpha1.NodeImageSet{
		ObjectMeta: metav1.ObjectMeta{Generation: generation},
		Status:     v1alpha1.NodeImageSetStatus{ObservedGeneration: 1, Images: []v1alpha1.NodeImageStatus{{Name: "app:v1", State: state}}},
	}
	for _, edit := range change {
		edit(&set.Status)
	}
	return set
}

func TestWhenAnAgentIsHeardAndSilent(t *testing.T) {
	beat := func(s *v1alpha1.NodeImageSetStatus) { s.LastHeartbeatTime = &metav1.Time{Time: at(100)} }
	for _, tt := range []struct {
		reason        string
		before, after *v1alpha1.NodeImageSet
		silent        int // seconds; -1 is never. It was heard at 0, and it is 100 now.
	}{
		{"at the first sight it has all its time", nil, asks(2, v1alpha1.ImagePresent), 160},
		{"so has one that works", nil, asks(1, v1alpha1.ImagePulling), 190},
		{"one that has all images owes nothing", asks(1, v1alpha1.ImagePresent), asks(1, v1alpha1.ImagePresent), -1},
		{"nor does one that has given up", asks(1, v1alpha1.ImageFailed), asks(1, v1alpha1.ImageFailed), -1},
		{"one that pulls owes a heartbeat", asks(1, v1alpha1.ImagePulling), asks(1, v1alpha1.ImagePulling), 90},
		{"so does one that waits", asks(1, v1alpha1.ImagePending), asks(1, v1alpha1.ImagePending), 90},
		{"which it gives", asks(1, v1alpha1.ImagePulling), asks(1, v1alpha1.ImagePulling, beat), 190},
		{"a new spec gives one that owed nothing all its time", asks(1, v1alpha1.ImagePresent), asks(2, v1alpha1.ImagePresent), 160},
		{"a further spec does not", asks(2, v1alpha1.ImagePresent), asks(3, v1alpha1.ImagePresent), 60},
		{"a new spec does not make up for a heartbeat", asks(1, v1alpha1.ImagePulling), asks(2, v1alpha1.ImagePulling), 90},
	} {
		heard := heartbeat.HeardAt(tt.before, tt.after, at(0), at(100))
		var want time.Time
		if tt.silent >= 0 {
			want = at(tt.silent)
		}
		got := heartbeat.SilentAt(heard, heartbeat.Acknowledged(tt.after), heartbeat.Unfinished(tt.after), agentTimeout)
		if !got.Equal(want) {
			t.Errorf("%s: silent at %v, want %v", tt.reason, got, want)
		}
	}

	// A heartbeat that is not due yet leaves all the time for a new spec.
	heard := heartbeat.HeardAt(asks(1, v1alpha1.ImagePulling), asks(2, v1alpha1.ImagePulling), at(80), at(100))
	if got := heartbeat.SilentAt(heard, false, true, agentTimeout); !got.Equal(at(160)) {
		t.Errorf("a new spec 20 s after a heartbeat: silent at %v, want %v", got, at(160))
	}
}
