// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// everyName does something with all names of an image.
func (w *world) everyName(tag string, d digest.Digest, do func(name string)) {
	w.Helper()
	ref, err := imageref.Parse(name(tag))
	if err != nil {
		w.Fatal(err)
	}
	for _, n := range ref.Names(d) {
		do(n)
	}
}

// back expects an image to be there again, and to be said to be.
func (w *world) back(tag string) {
	w.Helper()
	w.state(name(tag), v1alpha1.ImagePresent, "")
	if _, ok := w.runtime.Record(name(tag)); !ok {
		w.Error("the image did not come back")
	}
}

func TestADeletedImageComesBack(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.everyName("v1", d, w.runtime.Delete)
		before := len(w.runtime.Pulls())
		w.pass(14 * time.Second)
		w.state(name("v1"), v1alpha1.ImagePending, "")
		if again := len(w.runtime.Pulls()); again != before {
			t.Error("it was pulled again before the controller could know of disk pressure")
		}
		w.pass(2 * time.Second)
		w.back("v1")
	})
}

func TestWhatGoesUnseenIsMissedAtTheNextVerification(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.everyName("v1", d, w.runtime.Lose)
		w.pass(verify)
		w.back("v1")
	})
}

func TestWhatCannotBePulledCountsAsPresentWhenAnotherBringsIt(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		ref, _ := imageref.Parse("registry.test/team/app@" + d.String())
		w.apply(v1alpha1.NodeImage{Name: ref.String(), RegistryPolicy: v1alpha1.RegistryPolicyDefault})
		w.pass(moment)
		w.state(ref.String(), v1alpha1.ImageFailed, v1alpha1.ReasonImageNotFound)

		kubelet := nodeagent.PullRequest{Ref: ref, Digest: d, Policy: v1alpha1.RegistryPolicyMirror}
		if _, err := w.runtime.Pull(w.Context(), kubelet, func(nodeagent.Progress) {}); err != nil {
			t.Fatal(err)
		}
		w.pass(blink)
		w.state(ref.String(), v1alpha1.ImagePresent, "")
		if n := len(w.runtime.Pulls()); n != 2 {
			t.Errorf("%d pulls, want the agent's first and the kubelet's", n)
		}
	})
}

func TestANameThatIsMovedIsMovedBack(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.runtime.Point(name("v1"), "sha256:0000", false)
		w.pass(blink)
		if r, _ := w.runtime.Record(name("v1")); r.Digest != d {
			t.Errorf("the name means %s, want %s", r.Digest, d)
		}
	})
}

func TestARuntimeThatGoesAwayUsesUpNoTries(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		w.pass(5 * time.Minute)
		w.apply(peerOf("v1", d))
		w.pass(5 * time.Minute)
		w.state(name("v1"), v1alpha1.ImagePending, "")
		if w.agent.Connected() {
			t.Error("the agent says that it is connected")
		}
		w.runtime.Start()
		w.pass(time.Minute) // the longest backoff
		w.pass(blink)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := w.status(name("v1")); s.Attempts != 1 {
			t.Errorf("%d attempts, want 1", s.Attempts)
		}
	})
}

func TestARuntimeThatStaysAwayIsTold(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		writes := len(w.api.all())
		told := func(what, reason string, more int) {
			t.Helper()
			if c := w.ready(); c.Reason != reason {
				t.Errorf("%s: condition %+v", what, c)
			}
			if n := len(w.api.all()) - writes; n != more {
				t.Errorf("%s: %d writes, want %d", what, n, more)
			}
			writes = len(w.api.all())
		}
		w.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		w.pass(20 * time.Second)
		w.runtime.Start()
		w.pass(time.Minute)
		told("a restart", v1alpha1.ReasonImagesPresent, 0)

		w.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		w.pass(29 * time.Second)
		told("before the time is over", v1alpha1.ReasonImagesPresent, 0)
		w.pass(time.Minute)
		told("after that", v1alpha1.ReasonRuntimeUnavailable, 1)
		w.pass(10 * time.Minute)
		told("still", v1alpha1.ReasonRuntimeUnavailable, 0)
		w.state(name("v1"), v1alpha1.ImagePresent, "")

		w.set.Status = w.api.all()[writes-1]
		w.stop()
		w.start()
		w.agent.Apply(w.set.DeepCopy())
		w.pass(10 * time.Minute)
		told("by a new process", v1alpha1.ReasonRuntimeUnavailable, 0)

		w.runtime.Start()
		w.pass(time.Minute)
		w.pass(moment)
		told("when it is back", v1alpha1.ReasonImagesPresent, 1)
	})
}

func TestAReplacedRuntimeIsToldForWhatItIs(t *testing.T) {
	bubble(t, func(w *world) {
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)))
		w.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		w.pass(2 * time.Minute)
		w.runtime.Stop(fmt.Errorf("%w: containerd 1.7.0", nodeagent.ErrUnsupportedRuntime))
		w.pass(2 * time.Minute)
		if c := w.ready(); c.Reason != v1alpha1.ReasonUnsupportedRuntime {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestWhatHappenedWhileTheRuntimeWasAwayIsSeen(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		w.runtime.Delete(name("v1"))
		w.runtime.Start()
		w.pass(moment)
		w.back("v1")
	})
}

func TestAnUnsupportedRuntimeIsToldAndLeftAlone(t *testing.T) {
	bubble(t, func(w *world) {
		w.runtime.Stop(fmt.Errorf("%w: containerd 1.7.0", nodeagent.ErrUnsupportedRuntime))
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)))
		w.pass(2 * time.Minute)
		if c := w.ready(); c.Reason != v1alpha1.ReasonUnsupportedRuntime {
			t.Errorf("condition %+v", c)
		}
		if n := len(w.runtime.Pulls()); n != 0 {
			t.Errorf("%d pulls", n)
		}
	})
}

func TestPinsFollowRetentionAndSpec(t *testing.T) {
	bubble(t, func(w *world) {
		entry := peerOf("v1", w.push("v1", w.runtime.Mirror))
		pinned := func() bool {
			r, ok := w.runtime.Record(name("v1"))
			if !ok {
				t.Error("the image is gone")
			}
			return r.Pinned
		}
		for _, step := range []struct {
			what    string
			entries []v1alpha1.NodeImage
			want    bool
		}{
			{"Pinned is the default", []v1alpha1.NodeImage{entry}, true},
			{"BestEffort", []v1alpha1.NodeImage{{Name: entry.Name, Digest: entry.Digest, RegistryPolicy: entry.RegistryPolicy, Retention: v1alpha1.RetentionBestEffort}}, false},
			{"Pinned again", []v1alpha1.NodeImage{entry}, true},
			{"nobody wants it", nil, false},
		} {
			w.apply(step.entries...)
			w.pass(moment)
			if got := pinned(); got != step.want {
				t.Errorf("%s: pinned is %v", step.what, got)
			}
		}
		if n := len(w.runtime.Pulls()); n != 1 {
			t.Errorf("%d pulls, want 1", n)
		}
	})
}

func TestWhileATagIsAskedForAgainWhatItMeantStays(t *testing.T) {
	for _, tt := range []struct {
		reason string
		answer error
		want   string
	}{
		{"the registry does not answer", nodeagent.ErrRegistryUnavailable, v1alpha1.ReasonRegistryUnavailable},
		{"the registry refuses", nodeagent.ErrUnauthorized, v1alpha1.ReasonImagePullUnauthorized},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			bubble(t, func(w *world) {
				d := w.push("v1", w.runtime.Upstream)
				w.apply(seedOf("v1", "m1"))
				w.pass(moment)
				before := len(w.api.all())

				w.runtime.Fail = func(nodeagent.PullRequest) error { return tt.answer }
				entry := seedOf("v1", "m2")
				entry.Digest = d.String()
				w.apply(entry)
				w.pass(10 * time.Minute)
				w.set.Status = w.api.all()[len(w.api.all())-1]
				w.stop()
				w.start()
				w.agent.Apply(w.set.DeepCopy())
				w.pass(10 * time.Minute)
				for _, write := range w.api.all()[before:] {
					if s := write.Images[0]; s.State != v1alpha1.ImagePresent || s.Digest != d.String() || s.Request != "m1" {
						w.Fatalf("status %+v", s)
					}
				}
				w.state(name("v1"), v1alpha1.ImagePresent, tt.want)
				if s := w.status(name("v1")); tt.want == v1alpha1.ReasonRegistryUnavailable && s.Attempts <= 4 {
					t.Errorf("it asked %d times", s.Attempts)
				}
				if r, _ := w.runtime.Record(name("v1")); !r.Pinned {
					t.Error("the image is not pinned any more")
				}

				for _, n := range []string{name("v1"), "registry.test/team/app@" + d.String()} {
					w.runtime.Delete(n)
				}
				w.pass(moment)
				w.state(name("v1"), v1alpha1.ImageFailed, tt.want)

				w.runtime.Fail = nil
				entry.Request = "m2,m3"
				w.apply(entry)
				w.pass(moment)
				w.state(name("v1"), v1alpha1.ImagePresent, "")
				if s := w.status(name("v1")); s.Request != "m2,m3" || s.Digest != d.String() {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestATagThatMeansTheSameIsNeverMissing(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Upstream)
		w.apply(seedOf("v1", "m1"))
		w.pass(moment)
		before := len(w.api.all())
		entry := seedOf("v1", "m2")
		entry.Digest = d.String()
		answer := make(chan error)
		w.runtime.Fail = func(nodeagent.PullRequest) error { return <-answer }
		w.apply(entry)
		w.pass(moment)
		answer <- nil
		w.pass(moment)
		if s := w.status(name("v1")); s.Request != "m2" || s.Attempts != 1 {
			t.Errorf("status %+v", s)
		}
		for _, write := range w.api.all()[before:] {
			if s := write.Images[0]; s.State != v1alpha1.ImagePresent {
				t.Errorf("status %+v", s)
			}
		}
	})
}

func TestWithoutAnObjectOldPinsComeOff(t *testing.T) {
	bubble(t, func(w *world) {
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)))
		w.pass(moment)
		w.stop()
		w.start()
		w.agent.Apply(nil)
		w.pass(moment)
		if r, _ := w.runtime.Record(name("v1")); r.Pinned {
			t.Error("the image is still pinned")
		}
		if !w.agent.Synced() {
			t.Error("the agent does not count as synced")
		}
	})
}

func TestAnImageThatLeavesTheSpecIsPulledNoMore(t *testing.T) {
	bubble(t, func(w *world) {
		w.runtime.PerBlob = 50 * time.Second
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)))
		w.pass(moment)
		w.apply()
		w.pass(time.Hour)
		if _, ok := w.runtime.Record(name("v1")); ok {
			t.Error("the image was pulled all the same")
		}
		if writes := w.api.all(); len(writes[len(writes)-1].Images) != 0 {
			t.Errorf("status %+v", writes[len(writes)-1].Images)
		}
	})
}
