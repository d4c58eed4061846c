// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
)

func TestPullsAreBoundedAndNoImageIsQueuedTwice(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob = 5 * time.Second
		var entries []v1alpha1.NodeImage
		for i := range 5 {
			tag := fmt.Sprintf("v%d", i)
			entries = append(entries, peerOf(tag, a.push(tag, a.runtime.Mirror)))
		}
		a.apply(entries...)
		a.apply(entries...)
		a.advance(3 * time.Minute)
		if n := a.runtime.MostPulling(); n != 2 {
			t.Errorf("%d pulls at a time, want 2", n)
		}
		if n := len(a.runtime.Pulls()); n != 5 {
			t.Errorf("%d pulls, want 5", n)
		}
		if c := a.ready(); c.Status != metav1.ConditionTrue || c.Message != "5 of 5 images are present" {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestAChangedDigestStopsTheRunningPull(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob = time.Minute - time.Second
		a.apply(peerOf("v1", a.push("old", a.runtime.Mirror)))
		a.advance(moment)
		a.runtime.PerBlob = 0
		d := a.push("new", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		s := a.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Digest != d.String() || s.Attempts != 1 {
			t.Errorf("status %+v, want %s", s, d)
		}
	})
}

func TestAChangedPolicyStopsTheRunningPull(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream) // not on the mirror
		a.apply(peerOf("v1", d))
		a.advance(moment)
		entry := seedOf("v1", "")
		entry.Digest = d.String()
		a.apply(entry)
		a.advance(moment)
		if s := a.status(name("v1")); s.State != v1alpha1.ImagePresent || s.Source != v1alpha1.SourceUpstream {
			t.Errorf("status %+v", s)
		}
	})
}

func TestTransientErrorsAreTriedAgainUpToTheLimitAndThenOnceAMinute(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream)
		a.runtime.Upstream.SetDown(true)
		a.apply(seedOf("v1", "m1"))
		a.advance(8 * time.Second) // at most 1, 2 and 4 s between the tries
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable)
		if s := a.status(name("v1")); s.Attempts != 4 {
			t.Errorf("%d attempts, want the first and three more", s.Attempts)
		}
		if c := a.ready(); c.Reason != v1alpha1.ReasonImagesFailed {
			t.Errorf("condition %+v", c)
		}
		writes := len(a.written.all())
		a.advance(10 * time.Minute)
		if n := len(a.runtime.Pulls()); n < 14 || n > 30 {
			t.Errorf("%d pulls, want about one a minute", n)
		}
		tries := len(a.runtime.Pulls()) - 4
		if n := len(a.written.all()) - writes; n != tries && n != tries-1 { // the last may not be written yet
			t.Errorf("%d writes of %d further tries, want one of each", n, tries)
		}
		a.runtime.Upstream.SetDown(false)
		a.advance(time.Minute + time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := a.status(name("v1")); s.Digest != d.String() || s.Message != "" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestFinalErrorsWaitForTheEntryToChange(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.runtime.Upstream.Protect("team/app")
		a.apply(seedOf("v1", "m1"))
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized)
		a.advance(3 * verify)
		if n := len(a.runtime.Pulls()); n != 1 {
			t.Fatalf("%d pulls, want 1", n)
		}
		a.apply(seedOf("v1", "m1,m2"))
		a.advance(moment)
		if n := len(a.runtime.Pulls()); n != 2 {
			t.Errorf("%d pulls after the change, want 2", n)
		}
	})
}

func TestAPeerWithoutProgressReportsNotOnMirror(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1") // nowhere
		none := int32(0)
		entry := peerOf("v1", d)
		entry.ImageDownloadRetryLimit = &none
		a.apply(entry)
		a.advance(noProgress - time.Second)
		a.state(name("v1"), v1alpha1.ImagePulling, "")
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)
	})
}

func TestAPeerOfASlowSeedDoesNotFailAsLongAsSomethingComes(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		var serve []func()
		for _, layer := range images.Layers("v1", 3, images.KiB) {
			d, err := layer.Digest()
			if err != nil {
				t.Fatal(err)
			}
			serve = append(serve, a.runtime.Mirror.Withhold(digest.Digest(d.String())))
		}
		once := int32(1)
		entry := peerOf("v1", d)
		entry.ImageDownloadRetryLimit = &once
		a.apply(entry)
		for _, come := range serve {
			a.advance(noProgress + 40*time.Second)
			come()
		}
		a.advance(10 * time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		for _, write := range a.written.all() {
			if s := write.Images[0]; s.State == v1alpha1.ImageFailed {
				t.Fatalf("status %+v", s)
			}
		}
	})
}

func TestAPullWithoutProgressIsStopped(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.runtime.PerBlob = 2 * time.Minute
		none := int32(0)
		entry := seedOf("v1", "m1")
		entry.ImageDownloadRetryLimit = &none
		a.apply(entry)
		a.advance(noProgress + moment)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonNoProgress)
	})
}

func TestASpecThatLeavesNothingToDoIsAcknowledgedWithTheNextReport(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream, a.runtime.Mirror)
		other := a.push("v2", a.runtime.Mirror)
		a.apply(seedOf("v1", "m1"))
		a.advance(10 * time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		writes := len(a.written.all())

		present := peerOf("v1", d) // demoted after its pull as a seed
		present.Request = "m1"
		a.apply(present)
		a.advance(2 * time.Second)
		if n := len(a.written.all()) - writes; n != 0 {
			t.Errorf("%d writes at once, of a change that the controller does not wait for", n)
		}
		a.apply(present, peerOf("v2", other))
		a.advance(10 * time.Second)
		if n := len(a.written.all()) - writes; n != 1 {
			t.Errorf("%d writes, want one of the pull", n)
		}
		a.apply(seedOf("v1", "m1"), peerOf("v2", other))
		a.advance(10 * time.Second)
		if last := a.lastWritten(); last.ObservedGeneration != a.set.Generation {
			t.Errorf("generation %d was not taken up: %d", a.set.Generation, last.ObservedGeneration)
		}
	})
}

func TestAnImageThatDoesNotFitFailsUntilAnotherIsDeleted(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		full := true
		a.runtime.Fail = func(nodeagent.PullRequest) error {
			if full {
				return nodeagent.ErrInsufficientDisk
			}
			return nil
		}
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)
		full = false
		a.runtime.Delete("docker.io/library/other:latest")
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestAnImageThatDoesNotFitBesideAnotherPullIsTriedWhenThatEnds(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		const perBlob, blobs = 40 * time.Second, 5
		a.runtime.PerBlob = perBlob
		a.runtime.Fail = func(req nodeagent.PullRequest) error {
			if _, there := a.runtime.Record(name("v1")); !there && req.Ref.String() != name("v1") {
				return nodeagent.ErrInsufficientDisk
			}
			return nil
		}
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)), peerOf("v2", a.push("v2", a.runtime.Mirror)), peerOf("v3", a.push("v3", a.runtime.Mirror)))
		a.advance(blobs*perBlob - time.Millisecond)
		a.state(name("v2"), v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)
		before := len(a.runtime.Pulls())
		if before > 30 { // about nine tries of each
			t.Errorf("%d pulls: an image that does not fit makes no space for the other", before)
		}
		a.advance(2 * time.Millisecond)
		if n := len(a.runtime.Pulls()) - before; n != 2 {
			t.Errorf("%d pulls began when there was space, want both", n)
		}
		a.advance(blobs*perBlob + moment)
		a.state(name("v2"), v1alpha1.ImagePresent, "")
		a.state(name("v3"), v1alpha1.ImagePresent, "")
	})
}

func TestAPeerWithoutADigestWaits(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.apply(peerOf("v1", ""))
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePending, "")
		if n := len(a.runtime.Pulls()); n != 0 {
			t.Errorf("%d pulls", n)
		}
	})
}

func TestANameThatDoesNotParseFails(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.apply(v1alpha1.NodeImage{Name: "registry.test/UPPER", RegistryPolicy: v1alpha1.RegistryPolicyDefault})
		a.advance(moment)
		a.state("registry.test/UPPER", v1alpha1.ImageFailed, v1alpha1.ReasonPullFailed)
	})
}
