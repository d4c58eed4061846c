// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
)

func TestAQuickPullCostsOneStatusWrite(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.runtime.PerBlob = 50 * time.Millisecond
		a.apply(peerOf("v1", d))
		a.advance(moment)
		if n := len(a.written.all()); n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
		s := a.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Source != v1alpha1.SourceMirror || s.Digest != d.String() ||
			s.Attempts != 1 || s.PulledBytes < s.SizeBytes || s.SizeBytes == 0 || s.StartedAt == nil || s.FinishedAt == nil {
			t.Errorf("status %+v", s)
		}
		if c := a.ready(); c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonImagesPresent || c.ObservedGeneration != 1 {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestPresentIsReportedAtOnce(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.runtime.PerBlob = 10 * time.Second
		a.apply(peerOf("v1", d))
		a.advance(50*time.Second + 100*time.Millisecond) // manifest, config, three layers
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestImagesThatComeAtAboutTheSameTimeAreReportedTogether(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		first, second := a.push("v1", a.runtime.Mirror), a.push("v2", a.runtime.Mirror)
		a.runtime.PerBlob = 10 * time.Second
		a.apply(peerOf("v1", first))
		a.advance(100 * time.Millisecond)
		a.apply(peerOf("v1", first), peerOf("v2", second))
		a.advance(49 * time.Second) // manifest, config, three layers
		writes := len(a.written.all())
		a.advance(2 * time.Second)
		if n := len(a.written.all()) - writes; n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		a.state(name("v2"), v1alpha1.ImagePresent, "")
	})
}

func TestProgressOfALongPullIsReportedSeldomAndOnlyIfItChanged(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.runtime.PerBlob = 40 * time.Second
		a.apply(peerOf("v1", d))
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePulling, "")
		before := len(a.written.all())
		a.advance(25 * time.Second) // nothing arrives
		if n := len(a.written.all()) - before; n != 0 {
			t.Errorf("%d writes while nothing changed", n)
		}
		a.advance(210 * time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if n := len(a.written.all()); n > 12 {
			t.Errorf("%d writes in four minutes", n)
		}
		pulled := int64(0)
		for _, write := range a.written.all() {
			if s := write.Images[0]; s.PulledBytes < pulled {
				t.Errorf("pulledBytes went from %d to %d", pulled, s.PulledBytes)
			} else {
				pulled = s.PulledBytes
			}
		}
	})
}

// An agent that says nothing for longer counts as gone (package heartbeat).
func TestAnAgentThatHasImagesToBringWritesAtLeastEveryHeartbeat(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		first, second := a.push("v1", a.runtime.Mirror), a.push("v2", a.runtime.Mirror)
		a.runtime.PerBlob, a.runtime.Unpacking = time.Second, 3*time.Minute
		a.apply(peerOf("v1", first), peerOf("v2", second))
		var writes []time.Time
		beats := map[time.Time]bool{}
		for range 400 {
			before := len(a.written.all())
			a.advance(time.Second)
			if len(a.written.all()) > before {
				writes = append(writes, time.Now())
			}
			if beat := a.lastWritten().LastHeartbeatTime; beat != nil {
				beats[beat.Time] = true
			}
		}
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		for i := 1; i < len(writes); i++ {
			if gap := writes[i].Sub(writes[i-1]); gap > v1alpha1.HeartbeatInterval+time.Second {
				t.Errorf("nothing was written for %v", gap)
			}
		}
		if len(beats) == 0 {
			t.Error("no write was a heartbeat")
		}
		if beat := a.lastWritten().LastHeartbeatTime; beat != nil || time.Since(writes[len(writes)-1]) < time.Minute {
			t.Errorf("heartbeat %v, last write at %v: an agent that has all images is silent", beat, writes[len(writes)-1])
		}
	})
}

// reportedAt returns after how many seconds the first reports of a pull from upstream arrived, in
// which a blob comes every second.
func (a *agentTest) reportedAt(reports int) (seconds []int) {
	a.Helper()
	image, err := images.Image(images.Options{Layers: images.Layers("long", 150, images.KiB)})
	if err != nil {
		a.Fatal(err)
	}
	if err := a.runtime.Upstream.Push("team/app:v1", image); err != nil {
		a.Fatal(err)
	}
	a.runtime.PerBlob = time.Second
	began := time.Now()
	a.apply(seedOf("v1", "m")) // whose answer is the first report
	for len(seconds) < reports {
		before := len(a.written.all())
		a.advance(blink)
		if len(a.written.all()) > before {
			seconds = append(seconds, int(time.Since(began)/time.Second))
		}
	}
	return seconds
}

// docs/benchmarks.md states these intervals, and test/e2e counts by them what a pull costs.
func TestProgressIsReportedAfterTheDocumentedIntervals(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		if diff := cmp.Diff([]int{0, 2, 6, 14, 30, 60, 90, 120}, a.reportedAt(8)); diff != "" {
			t.Errorf("reports after so many seconds: %s", diff)
		}
	})
}

func TestASlowAPIServerIsToldOfProgressAtTheSameIntervals(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.written.takes = 3 * time.Second
		// 2 s, 4 s and 8 s from the arrival of one to the next, which then takes its 3 s.
		if diff := cmp.Diff([]int{3, 8, 15, 26}, a.reportedAt(4)); diff != "" {
			t.Errorf("reports arrived after so many seconds: %s", diff)
		}
	})
}

func TestTheEndOfReceivingIsReportedOnceWhileTheImageIsUnpacked(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.runtime.PerBlob, a.runtime.Unpacking = 10*time.Second, 10*time.Minute
		a.apply(seedOf("v1", "m"))
		a.advance(45 * time.Second)
		if s := a.status(name("v1")); s.State != v1alpha1.ImagePulling || s.FinishedAt != nil {
			t.Fatalf("while it is received: %+v", s)
		}
		received := metav1.Time{Time: time.Now().Add(5 * time.Second)} // manifest, config, three layers
		a.advance(40 * time.Second)
		if s := a.status(name("v1")); s.State != v1alpha1.ImagePulling || s.FinishedAt == nil || s.FinishedAt.Sub(received.Time).Abs() > time.Second {
			t.Fatalf("once it is, at %v: %+v", received, s)
		}
		before := a.written.all()
		a.advance(9 * time.Minute)
		heartbeats := a.written.all()[len(before):]
		if n := len(heartbeats); n != 18 {
			t.Errorf("%d writes while nothing else changed, want one each 30 s", n)
		}
		for _, write := range heartbeats {
			if diff := cmp.Diff(before[len(before)-1], write, cmpopts.IgnoreFields(write, "LastHeartbeatTime")); diff != "" {
				t.Errorf("more than the time of the heartbeat changed: %s", diff)
			}
		}
		a.advance(time.Minute)
		if s := a.status(name("v1")); s.State != v1alpha1.ImagePresent || s.FinishedAt.Sub(received.Time) < 9*time.Minute {
			t.Errorf("at the end: %+v", s)
		}
	})
}

func TestAResolverAnswersBeforeTheContentIsComplete(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream)
		a.runtime.PerBlob = 5 * time.Second
		a.apply(seedOf("v1", "m1"))
		a.advance(blink)
		s := a.status(name("v1"))
		if s.State != v1alpha1.ImagePulling || s.Digest != d.String() || s.Request != "m1" {
			t.Fatalf("status %+v", s)
		}
		// The controller sets the digest, and the pull goes on.
		entry := seedOf("v1", "m1")
		entry.Digest = d.String()
		a.apply(entry)
		a.advance(time.Minute)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if n := len(a.runtime.Pulls()); n != 1 {
			t.Errorf("%d pulls, want 1", n)
		}
		if n := a.runtime.Upstream.Resolved(); n != 1 {
			t.Errorf("resolved %d times, want once", n)
		}
	})
}

func TestAFurtherRequestIDIsAnsweredAfterTheRunningPull(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		first := a.push("v1", a.runtime.Upstream)
		a.runtime.PerBlob = 5 * time.Second
		a.apply(seedOf("v1", "m1"))
		a.advance(blink)
		entry := seedOf("v1", "m1,m2")
		entry.Digest = first.String()
		a.apply(entry)
		a.advance(blink)
		if s := a.status(name("v1")); s.Request != "m1" {
			t.Fatalf("request %q is reported as answered while the first pull runs", s.Request)
		}
		a.advance(time.Minute)
		s := a.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Request != "m1,m2" || s.Digest != first.String() {
			t.Errorf("status %+v", s)
		}
		if n := a.runtime.Upstream.Resolved(); n != 2 {
			t.Errorf("resolved %d times, want twice", n)
		}
	})
}

func TestANewAnswerIsNewerThanTheDigestInTheSpec(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		old := a.push("v1", a.runtime.Upstream)
		a.apply(seedOf("v1", "m1"))
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")

		image, err := images.Image(images.Options{Layers: images.Layers("other", 2, images.KiB)})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.runtime.Upstream.Push("team/app:v1", image); err != nil {
			t.Fatal(err)
		}
		entry := seedOf("v1", "m1,m2")
		entry.Digest = old.String()
		a.apply(entry)
		a.advance(moment)
		s := a.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Digest == old.String() || s.Request != "m1,m2" {
			t.Errorf("status %+v", s)
		}
		// A spec that changes its digest after the answer is newer than the answer.
		entry.Digest = a.push("v3", a.runtime.Upstream).String()
		a.apply(entry)
		a.advance(moment)
		if s := a.status(name("v1")); s.Digest != entry.Digest || s.State != v1alpha1.ImagePresent {
			t.Errorf("status %+v, want digest %s", s, entry.Digest)
		}
	})
}

func TestFewerRequestIDsNeedNoNewAnswer(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.apply(seedOf("v1", "m1,m2"))
		a.advance(moment)
		a.apply(seedOf("v1", "m2"))
		a.advance(moment)
		if s := a.status(name("v1")); s.Request != "m2" {
			t.Errorf("request %q, want m2", s.Request)
		}
		if n := a.runtime.Upstream.Resolved(); n != 1 {
			t.Errorf("resolved %d times, want once", n)
		}
	})
}

func TestPullsAreCountedBySourceAndResult(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		missing := a.push("v2", a.runtime.Upstream)
		a.apply(peerOf("v1", d), peerOf("v2", missing))
		a.advance(noProgress + moment)
		size := a.status(name("v1")).PulledBytes
		if got := a.metric("sluice_agent_pulled_bytes_total", "Mirror"); size == 0 || got != float64(size) {
			t.Errorf("%v bytes from the mirror, want %d", got, size)
		}
		a.apply(peerOf("v1", d), seedOf("v2", "m1"))
		a.advance(moment)
		for _, want := range []struct {
			result, source string
			count          float64
		}{{"Success", "Mirror", 1}, {v1alpha1.ReasonNotOnMirror, "Mirror", 1}, {"Success", "Upstream", 1}, {"Success", "Local", 0}} {
			for _, metric := range []string{"sluice_agent_pulls_total", "sluice_agent_pull_duration_seconds"} {
				if got := a.metric(metric, want.result, want.source); got != want.count {
					t.Errorf("%s of %s from %s is %v, want %v", metric, want.result, want.source, got, want.count)
				}
			}
		}
	})
}

func TestARestartedAgentWritesNothingAndResolvesNoTagTwice(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.apply(seedOf("v1", "m1"))
		a.advance(moment)
		writes := a.written.all()
		a.set.Status = writes[len(writes)-1]
		a.stop()
		a.start()
		a.agent.Apply(a.set.DeepCopy())
		a.advance(2 * verify)
		if diff := cmp.Diff(len(writes), len(a.written.all())); diff != "" {
			t.Errorf("writes %s: %s", diff, cmp.Diff(writes[len(writes)-1], a.lastWritten()))
		}
		if n := a.runtime.Upstream.Resolved(); n != 1 {
			t.Errorf("resolved %d times, want once", n)
		}
	})
}

func TestAnObjectThatIsMadeAgainGetsItsStatus(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		a.set.UID, a.set.Generation = "2", 0
		before := len(a.written.all())
		a.apply(peerOf("v1", d))
		a.advance(moment)
		if n := len(a.written.all()); n != before+1 {
			t.Errorf("%d writes for the new object, want 1", n-before)
		}
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestAFailedStatusWriteIsTriedAgain(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.written.err = fmt.Errorf("the API server is away")
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(10 * time.Minute)
		a.written.Lock()
		a.written.err = nil
		a.written.Unlock()
		a.advance(time.Minute + time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestAHeartbeatDoesNotCutTheBackoffOfFailedWritesShort(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob, a.runtime.Unpacking = time.Second, time.Hour
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(moment)
		a.written.Lock()
		a.written.err = fmt.Errorf("the API server is away")
		a.written.Unlock()
		a.advance(10 * time.Minute)
		a.written.Lock()
		failed := a.written.failed
		a.written.Unlock()
		if failed < 5 || failed > 30 { // 1 s, 2 s and so on up to a minute
			t.Errorf("%d writes failed within 10 minutes", failed)
		}
	})
}
