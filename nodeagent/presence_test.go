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

// forEachName calls do with each name of an image.
func (a *agentTest) forEachName(tag string, d digest.Digest, do func(name string)) {
	a.Helper()
	ref, err := imageref.Parse(name(tag))
	if err != nil {
		a.Fatal(err)
	}
	for _, n := range ref.Names(d) {
		do(n)
	}
}

// expectBack expects an image to be there again, and to be reported as Present.
func (a *agentTest) expectBack(tag string) {
	a.Helper()
	a.state(name(tag), v1alpha1.ImagePresent, "")
	if _, ok := a.runtime.Record(name(tag)); !ok {
		a.Error("the image did not come back")
	}
}

func TestADeletedImageComesBack(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		a.forEachName("v1", d, a.runtime.Delete)
		before := len(a.runtime.Pulls())
		a.advance(14 * time.Second)
		a.state(name("v1"), v1alpha1.ImagePending, "")
		if again := len(a.runtime.Pulls()); again != before {
			t.Error("it was pulled again before the controller could see disk pressure")
		}
		a.advance(2 * time.Second)
		a.expectBack("v1")
	})
}

func TestAnUnnoticedDeletionIsFoundAtTheNextVerification(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		a.forEachName("v1", d, a.runtime.Lose)
		a.advance(verify)
		a.expectBack("v1")
	})
}

func TestARefusedImageIsPresentWhenTheKubeletPullsIt(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		ref, _ := imageref.Parse("registry.test/team/app@" + d.String())
		a.apply(v1alpha1.NodeImage{Name: ref.String(), RegistryPolicy: v1alpha1.RegistryPolicyDefault})
		a.advance(moment)
		a.state(ref.String(), v1alpha1.ImageFailed, v1alpha1.ReasonImageNotFound)

		kubelet := nodeagent.PullRequest{Ref: ref, Digest: d, Policy: v1alpha1.RegistryPolicyMirror}
		if _, err := a.runtime.Pull(a.Context(), kubelet, func(nodeagent.Progress) {}); err != nil {
			t.Fatal(err)
		}
		a.advance(blink)
		a.state(ref.String(), v1alpha1.ImagePresent, "")
		if n := len(a.runtime.Pulls()); n != 2 {
			t.Errorf("%d pulls, want the agent's first and the kubelet's", n)
		}
	})
}

func TestANameThatIsMovedIsMovedBack(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		a.runtime.Point(name("v1"), "sha256:0000", false)
		a.advance(blink)
		if r, _ := a.runtime.Record(name("v1")); r.Digest != d {
			t.Errorf("the name means %s, want %s", r.Digest, d)
		}
	})
}

func TestARuntimeThatGoesAwayUsesUpNoTries(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		a.advance(5 * time.Minute)
		a.apply(peerOf("v1", d))
		a.advance(5 * time.Minute)
		a.state(name("v1"), v1alpha1.ImagePending, "")
		if a.agent.Connected() {
			t.Error("the agent says that it is connected")
		}
		a.runtime.Start()
		a.advance(time.Minute) // the longest backoff
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := a.status(name("v1")); s.Attempts != 1 {
			t.Errorf("%d attempts, want 1", s.Attempts)
		}
	})
}

func TestARuntimeThatStaysAwayIsReported(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		writes := len(a.written.all())
		expectReported := func(what, reason string, more int) {
			t.Helper()
			if c := a.ready(); c.Reason != reason {
				t.Errorf("%s: condition %+v", what, c)
			}
			if n := len(a.written.all()) - writes; n != more {
				t.Errorf("%s: %d writes, want %d", what, n, more)
			}
			writes = len(a.written.all())
		}
		a.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		a.advance(20 * time.Second)
		a.runtime.Start()
		a.advance(time.Minute)
		expectReported("a restart", v1alpha1.ReasonImagesPresent, 0)

		a.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		a.advance(29 * time.Second)
		expectReported("before the time is over", v1alpha1.ReasonImagesPresent, 0)
		a.advance(time.Minute)
		expectReported("after that", v1alpha1.ReasonRuntimeUnavailable, 1)
		a.advance(10 * time.Minute)
		expectReported("still", v1alpha1.ReasonRuntimeUnavailable, 0)
		a.state(name("v1"), v1alpha1.ImagePresent, "")

		a.set.Status = a.written.all()[writes-1]
		a.stop()
		a.start()
		a.agent.Apply(a.set.DeepCopy())
		a.advance(10 * time.Minute)
		expectReported("by a new process", v1alpha1.ReasonRuntimeUnavailable, 0)

		a.runtime.Start()
		a.advance(time.Minute)
		a.advance(moment)
		expectReported("when it is back", v1alpha1.ReasonImagesPresent, 1)
	})
}

func TestARuntimeThatIsReplacedByAnUnsupportedOneIsReportedAsThat(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		a.advance(2 * time.Minute)
		a.runtime.Stop(fmt.Errorf("%w: containerd 1.7.0", nodeagent.ErrUnsupportedRuntime))
		a.advance(2 * time.Minute)
		if c := a.ready(); c.Reason != v1alpha1.ReasonUnsupportedRuntime {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestADeletionWhileTheRuntimeWasAwayIsFound(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		a.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		a.runtime.Delete(name("v1"))
		a.runtime.Start()
		a.advance(moment)
		a.expectBack("v1")
	})
}

func TestAnUnsupportedRuntimeIsReportedAndNotUsed(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.Stop(fmt.Errorf("%w: containerd 1.7.0", nodeagent.ErrUnsupportedRuntime))
		a.advance(blink) // the agent has seen that; what it begins before is its own affair
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(2 * time.Minute)
		if c := a.ready(); c.Reason != v1alpha1.ReasonUnsupportedRuntime {
			t.Errorf("condition %+v", c)
		}
		if n := len(a.runtime.Pulls()); n != 0 {
			t.Errorf("%d pulls", n)
		}
	})
}

func TestPinsFollowRetentionAndSpec(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		entry := peerOf("v1", a.push("v1", a.runtime.Mirror))
		bestEffort := entry
		bestEffort.Retention = v1alpha1.RetentionBestEffort
		pinned := func() bool {
			r, ok := a.runtime.Record(name("v1"))
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
			{"BestEffort", []v1alpha1.NodeImage{bestEffort}, false},
			{"Pinned again", []v1alpha1.NodeImage{entry}, true},
			{"no longer in the spec", nil, false},
		} {
			a.apply(step.entries...)
			a.advance(moment)
			if got := pinned(); got != step.want {
				t.Errorf("%s: pinned is %v", step.what, got)
			}
		}
		if n := len(a.runtime.Pulls()); n != 1 {
			t.Errorf("%d pulls, want 1", n)
		}
	})
}

func TestWhileATagIsResolvedAgainItsOldDigestStays(t *testing.T) {
	for _, tt := range []struct {
		reason string
		answer error
		want   string
	}{
		{"the registry does not answer", nodeagent.ErrRegistryUnavailable, v1alpha1.ReasonRegistryUnavailable},
		{"the registry refuses", nodeagent.ErrUnauthorized, v1alpha1.ReasonImagePullUnauthorized},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			withAgent(t, func(a *agentTest) {
				d := a.push("v1", a.runtime.Upstream)
				a.apply(seedOf("v1", "m1"))
				a.advance(moment)
				before := len(a.written.all())

				a.runtime.Fail = func(nodeagent.PullRequest) error { return tt.answer }
				entry := seedOf("v1", "m2")
				entry.Digest = d.String()
				a.apply(entry)
				a.advance(10 * time.Minute)
				a.set.Status = a.lastWritten()
				a.stop()
				a.start()
				a.agent.Apply(a.set.DeepCopy())
				a.advance(10 * time.Minute)
				for _, write := range a.written.all()[before:] {
					if s := write.Images[0]; s.State != v1alpha1.ImagePresent || s.Digest != d.String() || s.Request != "m1" {
						a.Fatalf("status %+v", s)
					}
				}
				a.state(name("v1"), v1alpha1.ImagePresent, tt.want)
				if s := a.status(name("v1")); tt.want == v1alpha1.ReasonRegistryUnavailable && s.Attempts <= 4 {
					t.Errorf("%d attempts, want more than 4", s.Attempts)
				}
				if r, _ := a.runtime.Record(name("v1")); !r.Pinned {
					t.Error("the image is no longer pinned")
				}

				for _, n := range []string{name("v1"), "registry.test/team/app@" + d.String()} {
					a.runtime.Delete(n)
				}
				a.advance(moment)
				a.state(name("v1"), v1alpha1.ImageFailed, tt.want)

				a.runtime.Fail = nil
				entry.Request = "m2,m3"
				a.apply(entry)
				a.advance(moment)
				a.state(name("v1"), v1alpha1.ImagePresent, "")
				if s := a.status(name("v1")); s.Request != "m2,m3" || s.Digest != d.String() {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestATagThatStillMeansTheSameStaysPresent(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream)
		a.apply(seedOf("v1", "m1"))
		a.advance(moment)
		before := len(a.written.all())
		entry := seedOf("v1", "m2")
		entry.Digest = d.String()
		answer := make(chan error)
		a.runtime.Fail = func(nodeagent.PullRequest) error { return <-answer }
		a.apply(entry)
		a.advance(moment)
		answer <- nil
		a.advance(moment)
		if s := a.status(name("v1")); s.Request != "m2" || s.Attempts != 1 {
			t.Errorf("status %+v", s)
		}
		for _, write := range a.written.all()[before:] {
			if s := write.Images[0]; s.State != v1alpha1.ImagePresent {
				t.Errorf("status %+v", s)
			}
		}
	})
}

func TestWithoutAnObjectOldPinsAreRemoved(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(moment)
		a.stop()
		a.start()
		a.agent.Apply(nil)
		a.advance(moment)
		if r, _ := a.runtime.Record(name("v1")); r.Pinned {
			t.Error("the image is still pinned")
		}
		if !a.agent.Synced() {
			t.Error("the agent does not count as synced")
		}
	})
}

func TestAnImageThatLeavesTheSpecIsNoLongerPulled(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob = 50 * time.Second
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(moment)
		a.apply()
		a.advance(time.Hour)
		if _, ok := a.runtime.Record(name("v1")); ok {
			t.Error("the image was pulled all the same")
		}
		if images := a.lastWritten().Images; len(images) != 0 {
			t.Errorf("status %+v", images)
		}
	})
}
