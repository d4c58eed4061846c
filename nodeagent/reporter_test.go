// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
)

func TestAQuickPullCostsOneStatusWrite(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.runtime.PerBlob = 50 * time.Millisecond
		w.apply(peerOf("v1", d))
		w.pass(moment)
		if n := len(w.api.all()); n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
		s := w.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Source != v1alpha1.SourceMirror || s.Digest != d.String() ||
			s.Attempts != 1 || s.PulledBytes < s.SizeBytes || s.SizeBytes == 0 || s.StartedAt == nil || s.FinishedAt == nil {
			t.Errorf("status %+v", s)
		}
		if c := w.ready(); c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonImagesPresent || c.ObservedGeneration != 1 {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestPresentIsWrittenAtOnce(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.runtime.PerBlob = 10 * time.Second
		w.apply(peerOf("v1", d))
		w.pass(50*time.Second + 100*time.Millisecond) // manifest, config, three layers
		w.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestImagesThatComeAtAboutTheSameTimeAreToldTogether(t *testing.T) {
	bubble(t, func(w *world) {
		first, second := w.push("v1", w.runtime.Mirror), w.push("v2", w.runtime.Mirror)
		w.runtime.PerBlob = 10 * time.Second
		w.apply(peerOf("v1", first))
		w.pass(100 * time.Millisecond)
		w.apply(peerOf("v1", first), peerOf("v2", second))
		w.pass(49 * time.Second) // manifest, config, three layers
		writes := len(w.api.all())
		w.pass(2 * time.Second)
		if n := len(w.api.all()) - writes; n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		w.state(name("v2"), v1alpha1.ImagePresent, "")
	})
}

func TestProgressOfALongPullIsWrittenSeldomAndNotWithoutChange(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.runtime.PerBlob = 40 * time.Second
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImagePulling, "")
		before := len(w.api.all())
		w.pass(35 * time.Second) // nothing arrives
		if n := len(w.api.all()) - before; n != 0 {
			t.Errorf("%d writes while nothing changed", n)
		}
		w.pass(200 * time.Second)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		if n := len(w.api.all()); n > 7 {
			t.Errorf("%d writes in four minutes", n)
		}
		pulled := int64(0)
		for _, write := range w.api.all() {
			if s := write.Images[0]; s.PulledBytes < pulled {
				t.Errorf("pulledBytes went from %d to %d", pulled, s.PulledBytes)
			} else {
				pulled = s.PulledBytes
			}
		}
	})
}

func TestThatAllIsReceivedIsToldOnceWhileItIsUnpacked(t *testing.T) {
	bubble(t, func(w *world) {
		w.push("v1", w.runtime.Upstream)
		w.runtime.PerBlob, w.runtime.Unpacking = 10*time.Second, 10*time.Minute
		w.apply(seedOf("v1", "m"))
		w.pass(45 * time.Second)
		if s := w.status(name("v1")); s.State != v1alpha1.ImagePulling || s.FinishedAt != nil {
			t.Fatalf("while it is received: %+v", s)
		}
		received := metav1.Time{Time: time.Now().Add(5 * time.Second)} // manifest, config, three layers
		w.pass(40 * time.Second)
		if s := w.status(name("v1")); s.State != v1alpha1.ImagePulling || s.FinishedAt == nil || s.FinishedAt.Sub(received.Time).Abs() > time.Second {
			t.Fatalf("once it is, at %v: %+v", received, s)
		}
		before := len(w.api.all())
		w.pass(9 * time.Minute)
		if n := len(w.api.all()) - before; n != 0 {
			t.Errorf("%d writes while nothing else changed", n)
		}
		w.pass(time.Minute)
		if s := w.status(name("v1")); s.State != v1alpha1.ImagePresent || s.FinishedAt.Sub(received.Time) < 9*time.Minute {
			t.Errorf("at the end: %+v", s)
		}
	})
}

func TestAResolverAnswersBeforeTheContentIsComplete(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Upstream)
		w.runtime.PerBlob = 5 * time.Second
		w.apply(seedOf("v1", "m1"))
		w.pass(blink)
		s := w.status(name("v1"))
		if s.State != v1alpha1.ImagePulling || s.Digest != d.String() || s.Request != "m1" {
			t.Fatalf("status %+v", s)
		}
		// The controller fills the digest in: nothing begins anew.
		entry := seedOf("v1", "m1")
		entry.Digest = d.String()
		w.apply(entry)
		w.pass(time.Minute)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		if n := len(w.runtime.Pulls()); n != 1 {
			t.Errorf("%d pulls, want 1", n)
		}
		if n := w.runtime.Upstream.Resolved(); n != 1 {
			t.Errorf("resolved %d times, want once", n)
		}
	})
}

func TestAFurtherRequestIsAnsweredAfterThePresentPull(t *testing.T) {
	bubble(t, func(w *world) {
		first := w.push("v1", w.runtime.Upstream)
		w.runtime.PerBlob = 5 * time.Second
		w.apply(seedOf("v1", "m1"))
		w.pass(blink)
		entry := seedOf("v1", "m1,m2")
		entry.Digest = first.String()
		w.apply(entry)
		w.pass(blink)
		if s := w.status(name("v1")); s.Request != "m1" {
			t.Fatalf("request %q is said to be answered while the first pull runs", s.Request)
		}
		w.pass(time.Minute)
		s := w.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Request != "m1,m2" || s.Digest != first.String() {
			t.Errorf("status %+v", s)
		}
		if n := w.runtime.Upstream.Resolved(); n != 2 {
			t.Errorf("resolved %d times, want twice", n)
		}
	})
}

func TestANewAnswerIsNewerThanTheDigestInTheSpec(t *testing.T) {
	bubble(t, func(w *world) {
		old := w.push("v1", w.runtime.Upstream)
		w.apply(seedOf("v1", "m1"))
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImagePresent, "")

		image, err := images.Image(images.Options{Layers: images.Layers("other", 2, images.KiB)})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.runtime.Upstream.Push("team/app:v1", image); err != nil {
			t.Fatal(err)
		}
		entry := seedOf("v1", "m1,m2")
		entry.Digest = old.String()
		w.apply(entry)
		w.pass(moment)
		s := w.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Digest == old.String() || s.Request != "m1,m2" {
			t.Errorf("status %+v", s)
		}
		// A spec that changes its digest after the answer is newer than the answer.
		entry.Digest = w.push("v3", w.runtime.Upstream).String()
		w.apply(entry)
		w.pass(moment)
		if s := w.status(name("v1")); s.Digest != entry.Digest || s.State != v1alpha1.ImagePresent {
			t.Errorf("status %+v, want digest %s", s, entry.Digest)
		}
	})
}

func TestMarksThatAreNoLongerAskedForMakeNoNewQuestion(t *testing.T) {
	bubble(t, func(w *world) {
		w.push("v1", w.runtime.Upstream)
		w.apply(seedOf("v1", "m1,m2"))
		w.pass(moment)
		w.apply(seedOf("v1", "m2"))
		w.pass(moment)
		if s := w.status(name("v1")); s.Request != "m2" {
			t.Errorf("request %q, want m2", s.Request)
		}
		if n := w.runtime.Upstream.Resolved(); n != 1 {
			t.Errorf("resolved %d times, want once", n)
		}
	})
}

func TestPullsAreCountedBySourceAndResult(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		missing := w.push("v2", w.runtime.Upstream)
		w.apply(peerOf("v1", d), peerOf("v2", missing))
		w.pass(noProgress + moment)
		size := w.status(name("v1")).PulledBytes
		if got := w.figure("sluice_agent_pulled_bytes_total", "Mirror"); size == 0 || got != float64(size) {
			t.Errorf("%v bytes from the mirror, want %d", got, size)
		}
		w.apply(peerOf("v1", d), seedOf("v2", "m1"))
		w.pass(moment)
		for _, want := range []struct {
			result, source string
			count          float64
		}{{"Success", "Mirror", 1}, {v1alpha1.ReasonNotOnMirror, "Mirror", 1}, {"Success", "Upstream", 1}, {"Success", "Local", 0}} {
			for _, metric := range []string{"sluice_agent_pulls_total", "sluice_agent_pull_duration_seconds"} {
				if got := w.figure(metric, want.result, want.source); got != want.count {
					t.Errorf("%s of %s from %s is %v, want %v", metric, want.result, want.source, got, want.count)
				}
			}
		}
	})
}

func TestARestartedAgentWritesNothingNewAndAsksNothingTwice(t *testing.T) {
	bubble(t, func(w *world) {
		w.push("v1", w.runtime.Upstream)
		w.apply(seedOf("v1", "m1"))
		w.pass(moment)
		writes := w.api.all()
		w.set.Status = writes[len(writes)-1]
		w.stop()
		w.start()
		w.agent.Apply(w.set.DeepCopy())
		w.pass(2 * verify)
		if diff := cmp.Diff(len(writes), len(w.api.all())); diff != "" {
			t.Errorf("writes %s: %s", diff, cmp.Diff(writes[len(writes)-1], w.api.all()[len(w.api.all())-1]))
		}
		if n := w.runtime.Upstream.Resolved(); n != 1 {
			t.Errorf("resolved %d times, want once", n)
		}
	})
}

func TestAnObjectMadeAnewGetsItsStatus(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.set.UID, w.set.Generation = "2", 0
		before := len(w.api.all())
		w.apply(peerOf("v1", d))
		w.pass(moment)
		if n := len(w.api.all()); n != before+1 {
			t.Errorf("%d writes for the new object, want 1", n-before)
		}
		w.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestAFailedStatusWriteIsTriedAgain(t *testing.T) {
	bubble(t, func(w *world) {
		w.api.err = fmt.Errorf("the API server is away")
		w.apply(peerOf("v1", w.push("v1", w.runtime.Mirror)))
		w.pass(10 * time.Minute)
		w.api.Lock()
		w.api.err = nil
		w.api.Unlock()
		w.pass(time.Minute + time.Second)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}
