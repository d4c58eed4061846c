// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
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
	bubble(t, func(w *world) {
		w.runtime.PerBlob = 5 * time.Second
		var entries []v1alpha1.NodeImage
		for i := range 5 {
			tag := fmt.Sprintf("v%d", i)
			entries = append(entries, peerOf(tag, w.push(tag, w.runtime.Mirror)))
		}
		w.apply(entries...)
		w.apply(entries...)
		w.pass(3 * time.Minute)
		if n := w.runtime.MostPulling(); n != 2 {
			t.Errorf("%d pulls at a time, want 2", n)
		}
		if n := len(w.runtime.Pulls()); n != 5 {
			t.Errorf("%d pulls, want 5", n)
		}
		if c := w.ready(); c.Status != metav1.ConditionTrue || c.Message != "5 of 5 images are present" {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestAChangedDigestStopsTheRunningPull(t *testing.T) {
	bubble(t, func(w *world) {
		w.runtime.PerBlob = time.Minute - time.Second
		w.apply(peerOf("v1", w.push("old", w.runtime.Mirror)))
		w.pass(moment)
		w.runtime.PerBlob = 0
		d := w.push("new", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		s := w.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Digest != d.String() || s.Attempts != 1 {
			t.Errorf("status %+v, want %s", s, d)
		}
	})
}

func TestAChangedPolicyStopsTheRunningPull(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Upstream) // not on the mirror
		w.apply(peerOf("v1", d))
		w.pass(moment)
		entry := seedOf("v1", "")
		entry.Digest = d.String()
		w.apply(entry)
		w.pass(moment)
		if s := w.status(name("v1")); s.State != v1alpha1.ImagePresent || s.Source != v1alpha1.SourceUpstream {
			t.Errorf("status %+v", s)
		}
	})
}

func TestTransientErrorsAreTriedAgainUpToTheLimitAndThenOnceAMinute(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Upstream)
		w.runtime.Upstream.SetDown(true)
		w.apply(seedOf("v1", "m1"))
		w.pass(8 * time.Second) // 1, 2 and 4 s at the most between tries
		w.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable)
		if s := w.status(name("v1")); s.Attempts != 4 {
			t.Errorf("%d attempts, want the first and three more", s.Attempts)
		}
		if c := w.ready(); c.Reason != v1alpha1.ReasonImagesFailed {
			t.Errorf("condition %+v", c)
		}
		writes := len(w.api.all())
		w.pass(10 * time.Minute)
		if n := len(w.runtime.Pulls()); n < 14 || n > 30 {
			t.Errorf("%d pulls, want about one a minute", n)
		}
		tries := len(w.runtime.Pulls()) - 4
		if n := len(w.api.all()) - writes; n != tries && n != tries-1 { // the last may not be written yet
			t.Errorf("%d writes of %d further tries, want one of each", n, tries)
		}
		w.runtime.Upstream.SetDown(false)
		w.pass(time.Minute + time.Second)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := w.status(name("v1")); s.Digest != d.String() || s.Message != "" {
			t.Errorf("status %+v", s)
		}
	})
}

// noKeys is a controller that does not answer.
type noKeys struct{}

func (noKeys) For(context.Context, string) ([]nodeagent.Credential, error) {
	return nil, nodeagent.ErrCredentialsUnavailable
}

func TestOnlyWhatNeedsCredentialsWaitsForTheController(t *testing.T) {
	bubble(t, func(w *world) {
		w.push("v1", w.runtime.Upstream)
		w.push("v2", w.runtime.Upstream)
		w.stop()
		w.keys = noKeys{}
		w.start()
		private := seedOf("v2", "m1")
		private.ImagePullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "team", Name: "key"}}
		w.apply(seedOf("v1", "m1"), private)
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		w.state(name("v2"), v1alpha1.ImagePending, v1alpha1.ReasonCredentialsUnavailable)
	})
}

// keys hand out one credential.
type keys nodeagent.Credential

func (k keys) For(context.Context, string) ([]nodeagent.Credential, error) {
	return []nodeagent.Credential{nodeagent.Credential(k)}, nil
}

func TestARegistryThatRepeatsTheCredentialsIsNotQuoted(t *testing.T) {
	bubble(t, func(w *world) {
		w.stop()
		w.keys = keys{Username: "robot", Password: "hunter2"}
		w.runtime.Fail = func(req nodeagent.PullRequest) error {
			return fmt.Errorf("%w: denied: no access for %s", nodeagent.ErrUnauthorized, req.Credentials[0].Password)
		}
		w.start()
		private := seedOf("v1", "m1")
		private.ImagePullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "team", Name: "key"}}
		w.apply(private)
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized)
		if s := w.status(name("v1")); s.Message != "unauthorized: denied: no access for [credential]" {
			t.Errorf("message %q", s.Message)
		}
	})
}

func TestFinalErrorsWaitForTheEntryToChange(t *testing.T) {
	bubble(t, func(w *world) {
		w.push("v1", w.runtime.Upstream)
		w.runtime.Upstream.Protect("team/app")
		w.apply(seedOf("v1", "m1"))
		w.pass(blink)
		w.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized)
		w.pass(3 * verify)
		if n := len(w.runtime.Pulls()); n != 1 {
			t.Fatalf("%d pulls, want 1", n)
		}
		w.apply(seedOf("v1", "m1,m2"))
		w.pass(moment)
		if n := len(w.runtime.Pulls()); n != 2 {
			t.Errorf("%d pulls after the change, want 2", n)
		}
	})
}

func TestTheMirrorIsBlamedWhenAPullGetsNoFurther(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1") // nowhere
		none := int32(0)
		entry := peerOf("v1", d)
		entry.ImageDownloadRetryLimit = &none
		w.apply(entry)
		w.pass(noProgress - time.Second)
		w.state(name("v1"), v1alpha1.ImagePulling, "")
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)
	})
}

func TestAPeerOfASlowSeedDoesNotFailAsLongAsSomethingComes(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		var serve []func()
		for _, layer := range images.Layers("v1", 3, images.KiB) {
			d, err := layer.Digest()
			if err != nil {
				t.Fatal(err)
			}
			serve = append(serve, w.runtime.Mirror.Withhold(digest.Digest(d.String())))
		}
		once := int32(1)
		entry := peerOf("v1", d)
		entry.ImageDownloadRetryLimit = &once
		w.apply(entry)
		for _, come := range serve {
			w.pass(noProgress + 40*time.Second)
			come()
		}
		w.pass(10 * time.Second)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		for _, write := range w.api.all() {
			if s := write.Images[0]; s.State == v1alpha1.ImageFailed {
				t.Fatalf("status %+v", s)
			}
		}
	})
}

func TestAPullWithoutProgressIsStopped(t *testing.T) {
	bubble(t, func(w *world) {
		w.push("v1", w.runtime.Upstream)
		w.runtime.PerBlob = 2 * time.Minute
		none := int32(0)
		entry := seedOf("v1", "m1")
		entry.ImageDownloadRetryLimit = &none
		w.apply(entry)
		w.pass(noProgress + moment)
		w.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonNoProgress)
	})
}

func TestToTakeUpASpecThatLeavesNothingToDoWaitsForOtherNews(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Upstream, w.runtime.Mirror)
		other := w.push("v2", w.runtime.Mirror)
		w.apply(seedOf("v1", "m1"))
		w.pass(10 * time.Second)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		writes := len(w.api.all())

		held := peerOf("v1", d) // it has done its part as a seed
		held.Request = "m1"
		w.apply(held)
		w.pass(2 * time.Second)
		if n := len(w.api.all()) - writes; n != 0 {
			t.Errorf("%d writes at once, of what nobody waits for", n)
		}
		w.apply(held, peerOf("v2", other))
		w.pass(10 * time.Second)
		if n := len(w.api.all()) - writes; n != 1 {
			t.Errorf("%d writes, want one of the pull", n)
		}
		w.apply(seedOf("v1", "m1"), peerOf("v2", other))
		w.pass(10 * time.Second)
		if last := w.api.all()[len(w.api.all())-1]; last.ObservedGeneration != w.set.Generation {
			t.Errorf("generation %d was not taken up: %d", w.set.Generation, last.ObservedGeneration)
		}
	})
}

func TestWithoutRoomTheImageFailsUntilSomethingIsDeleted(t *testing.T) {
	bubble(t, func(w *world) {
		full := true
		w.runtime.Fail = func(nodeagent.PullRequest) error {
			if full {
				return nodeagent.ErrInsufficientDisk
			}
			return nil
		}
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)))
		w.pass(blink)
		w.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)
		full = false
		w.runtime.Delete("docker.io/library/other:latest")
		w.pass(blink)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestWhatHasNoRoomBesideAnotherPullGetsItsTurnWhenThatEnds(t *testing.T) {
	bubble(t, func(w *world) {
		const perBlob, blobs = 40 * time.Second, 5
		w.runtime.PerBlob = perBlob
		w.runtime.Fail = func(req nodeagent.PullRequest) error {
			if _, there := w.runtime.Record(name("v1")); !there && req.Ref.String() != name("v1") {
				return nodeagent.ErrInsufficientDisk
			}
			return nil
		}
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)), peerOf("v2", w.push("v2", w.runtime.Mirror)), peerOf("v3", w.push("v3", w.runtime.Mirror)))
		w.pass(blobs*perBlob - time.Millisecond)
		w.state(name("v2"), v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)
		before := len(w.runtime.Pulls())
		if before > 30 { // about nine tries of each
			t.Errorf("%d pulls: to refuse one of them gives the other no room", before)
		}
		w.pass(2 * time.Millisecond)
		if n := len(w.runtime.Pulls()) - before; n != 2 {
			t.Errorf("%d pulls began when there was room, want both", n)
		}
		w.pass(blobs*perBlob + moment)
		w.state(name("v2"), v1alpha1.ImagePresent, "")
		w.state(name("v3"), v1alpha1.ImagePresent, "")
	})
}

func TestAPeerWithoutADigestWaits(t *testing.T) {
	bubble(t, func(w *world) {
		w.apply(peerOf("v1", ""))
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImagePending, "")
		if n := len(w.runtime.Pulls()); n != 0 {
			t.Errorf("%d pulls", n)
		}
	})
}

func TestANameThatDoesNotParseFails(t *testing.T) {
	bubble(t, func(w *world) {
		w.apply(v1alpha1.NodeImage{Name: "registry.test/UPPER", RegistryPolicy: v1alpha1.RegistryPolicyDefault})
		w.pass(moment)
		w.state("registry.test/UPPER", v1alpha1.ImageFailed, v1alpha1.ReasonPullFailed)
	})
}
