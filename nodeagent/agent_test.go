// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/imageref"
	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

const (
	noProgress = time.Minute
	verify     = 10 * time.Minute
	// blink is longer than what is written at once, and shorter than what waits for
	// something to supersede it.
	blink = 500 * time.Millisecond
	// moment is longer than anything that waits to be written.
	moment = 2 * time.Second
)

// world is an agent on a fake runtime, in a synctest bubble: time passes when all
// goroutines wait.
type world struct {
	*testing.T
	figures *prometheus.Registry
	runtime *runtimetest.Fake
	agent   *nodeagent.Agent
	api     *api
	keys    nodeagent.Credentials
	set     *v1alpha1.NodeImageSet
	stop    func()
}

// api keeps what the agent writes.
type api struct {
	sync.Mutex
	writes []v1alpha1.NodeImageSetStatus
	err    error
}

func (a *api) WriteStatus(_ context.Context, _ types.UID, status v1alpha1.NodeImageSetStatus) error {
	a.Lock()
	defer a.Unlock()
	if a.err != nil {
		return a.err
	}
	a.writes = append(a.writes, *status.DeepCopy())
	return nil
}

func (a *api) all() []v1alpha1.NodeImageSetStatus {
	a.Lock()
	defer a.Unlock()
	return slices.Clone(a.writes)
}

// bubble runs a test with an agent that has no spec yet.
func bubble(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			T: t, runtime: runtimetest.NewFake(), api: &api{},
			set: &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "1"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "node"}},
		}
		w.start()
		defer func() { w.stop() }()
		test(w)
	})
}

// start starts an agent, as after a restart of its process.
func (w *world) start() {
	w.figures = prometheus.NewRegistry()
	w.agent = nodeagent.New(nodeagent.Options{
		Metrics: nodeagent.NewMetrics(w.figures),
		Runtime: w.runtime, Status: w.api, MaxParallelPulls: 2, NoProgressTimeout: noProgress, VerifyInterval: verify,
		Credentials: w.keys, Log: testr.NewWithOptions(w.T, testr.Options{}),
	})
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.agent.Run(ctx)
	}()
	w.stop = func() {
		cancel()
		<-ended
	}
	synctest.Wait()
}

// apply gives the agent a spec of these entries.
func (w *world) apply(entries ...v1alpha1.NodeImage) {
	w.Helper()
	w.set.Generation++
	w.set.Spec.ImageSet = entries
	w.agent.Apply(w.set.DeepCopy())
	synctest.Wait()
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // of the synctest bubble's clock
	synctest.Wait()
}

// status is what was written last of an image.
func (w *world) status(name string) v1alpha1.NodeImageStatus {
	w.Helper()
	writes := w.api.all()
	if len(writes) == 0 {
		w.Fatal("no status was written")
	}
	for _, s := range writes[len(writes)-1].Images {
		if s.Name == name {
			return s
		}
	}
	w.Fatalf("no status of %s in %+v", name, writes[len(writes)-1].Images)
	return v1alpha1.NodeImageStatus{}
}

func (w *world) ready() metav1.Condition {
	w.Helper()
	writes := w.api.all()
	c := meta.FindStatusCondition(writes[len(writes)-1].Conditions, v1alpha1.ConditionReady)
	if c == nil {
		w.Fatal("no condition Ready")
	}
	return *c
}

func (w *world) state(name string, want v1alpha1.ImageState, reason string) {
	w.Helper()
	if s := w.status(name); s.State != want || s.Reason != reason {
		w.Fatalf("%s is %s %q (%s), want %s %q", name, s.State, s.Reason, s.Message, want, reason)
	}
}

// push puts an image of three layers into registries under "app:TAG".
func (w *world) push(tag string, places ...*runtimetest.Registry) digest.Digest {
	w.Helper()
	image, err := images.Image(images.Options{Layers: images.Layers(tag, 3, images.KiB), Seed: tag})
	if err != nil {
		w.Fatal(err)
	}
	for _, place := range places {
		if err := place.Push("team/app:"+tag, image); err != nil {
			w.Fatal(err)
		}
	}
	d, err := image.Digest()
	if err != nil {
		w.Fatal(err)
	}
	return digest.Digest(d.String())
}

func name(tag string) string { return "registry.test/team/app:" + tag }

func seedOf(tag, request string) v1alpha1.NodeImage {
	return v1alpha1.NodeImage{Name: name(tag), RegistryPolicy: v1alpha1.RegistryPolicyDefault, Request: request}
}

func peerOf(tag string, d digest.Digest) v1alpha1.NodeImage {
	return v1alpha1.NodeImage{Name: name(tag), RegistryPolicy: v1alpha1.RegistryPolicyMirror, Digest: d.String()}
}

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

// figure is a metric with these labels: the value of a counter, or how often a histogram
// was observed.
func (w *world) figure(name string, labels ...string) float64 {
	w.Helper()
	families, err := w.figures.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var values []string
			for _, label := range m.GetLabel() { // sorted by name
				values = append(values, label.GetValue())
			}
			if slices.Equal(values, labels) {
				return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
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

func TestADeletedImageComesBack(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		ref, _ := imageref.Parse(name("v1"))
		for _, n := range ref.Names(d) {
			w.runtime.Delete(n)
		}
		before := len(w.runtime.Pulls())
		w.pass(14 * time.Second)
		w.state(name("v1"), v1alpha1.ImagePending, "")
		if again := len(w.runtime.Pulls()); again != before {
			t.Error("it was pulled again before the controller could know of disk pressure")
		}
		w.pass(2 * time.Second)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		if _, ok := w.runtime.Record(name("v1")); !ok {
			t.Error("the image did not come back")
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

func TestWhatHappenedWhileTheRuntimeWasAwayIsSeen(t *testing.T) {
	bubble(t, func(w *world) {
		d := w.push("v1", w.runtime.Mirror)
		w.apply(peerOf("v1", d))
		w.pass(moment)
		w.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		w.runtime.Delete(name("v1"))
		w.runtime.Start()
		w.pass(moment)
		w.state(name("v1"), v1alpha1.ImagePresent, "")
		if _, ok := w.runtime.Record(name("v1")); !ok {
			t.Error("the image did not come back")
		}
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

func TestWithoutRoomTheImageFailsUntilSomethingIsDeleted(t *testing.T) {
	bubble(t, func(w *world) {
		full := true
		w.runtime.Fail = func(nodeagent.Request) error {
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
