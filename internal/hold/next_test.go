// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestNext(t *testing.T) {
	holding := deployment(runs(imageB), held(5*time.Minute))
	for _, tt := range []struct {
		reason   string
		in       *appsv1.Deployment
		prefetch *v1alpha1.ImagePrefetch
		end      End
		wait     string
		wakeIn   time.Duration
		want     string
	}{
		{"the prefetch is Ready", holding, prefetch(imageB, imageC), EndReady, "", 0, runningB},
		{"some nodes failed, as many as are allowed", holding, func() *v1alpha1.ImagePrefetch {
			p := failing(imageB)
			p.Status.Conditions[0].Status, p.Status.Conditions[0].Reason = metav1.ConditionTrue, v1alpha1.ReasonFailuresTolerated
			return p
		}(), EndReady, "", 0, runningB},
		{"nodes are still to receive the images", holding, pulling(imageB), "", ReasonWaitingForNodes, 5 * time.Minute, stillB},
		{
			reason:   "the prefetch is not planned yet",
			in:       holding,
			prefetch: func() *v1alpha1.ImagePrefetch { p := prefetch(imageB); p.Generation++; return p }(),
			wait:     ReasonWaitingForNodes,
			wakeIn:   5 * time.Minute,
			want:     stillB,
		},
		{"nodes failed", holding, failing(imageB), "", ReasonPrefetchFailing, 5 * time.Minute, stillB},
		{"the label was emptied", with(holding, label("")), pulling(imageB), "", ReasonWaitingForNodes, 5 * time.Minute, stillB},
		{
			reason: "the label was emptied under skip",
			in:     with(holding, label(""), annotate(v1alpha1.GateAnnotation, "skip")),
			end:    EndOptedOut,
			want:   runningA,
		},
		{"the prefetch is missing", holding, nil, "", ReasonPrefetchMissing, 5 * time.Minute, stillB},
		{"the prefetch lists other tags", holding, prefetch(imageC), "", ReasonImagesNotListed, 5 * time.Minute, stillB},
		{"ready after the timeout is ready", deployment(runs(imageB), held(time.Hour)), prefetch(imageB), EndReady, "", 0, runningB},
		{"the timeout ran out", deployment(runs(imageB), held(10*time.Minute)), pulling(imageB), EndTimedOut, ReasonWaitingForNodes, 0, runningB},
		{
			reason: "the timeout ran out long ago, while no controller was there",
			in:     deployment(runs(imageB), held(100*time.Hour)),
			end:    EndTimedOut,
			wait:   ReasonPrefetchMissing,
			want:   runningB,
		},
		{
			reason: "a timeout of its own",
			in:     deployment(runs(imageB), held(time.Minute), annotate(v1alpha1.HoldTimeoutAnnotation, "90s")),
			wait:   ReasonPrefetchMissing,
			wakeIn: 30 * time.Second,
			want:   "paused hold=B since=1m0s released=A",
		},
		{
			reason: "no timeout",
			in:     deployment(runs(imageB), held(100*time.Hour), annotate(v1alpha1.HoldTimeoutAnnotation, "0")),
			wait:   ReasonPrefetchMissing,
			want:   "paused hold=B since=100h0m0s released=A",
		},
		{
			reason: "a broken timeout is the default",
			in:     deployment(runs(imageB), held(11*time.Minute), annotate(v1alpha1.HoldTimeoutAnnotation, "soon")),
			end:    EndTimedOut,
			wait:   ReasonPrefetchMissing,
			want:   runningB,
		},
		{
			reason: "on-timeout Hold goes on",
			in:     deployment(runs(imageB), held(time.Hour), annotate(v1alpha1.OnTimeoutAnnotation, "Hold")),
			wait:   ReasonPrefetchMissing,
			want:   "paused hold=B since=1h0m0s released=A",
		},
		{
			reason:   "on-timeout Hold is released when Ready",
			in:       deployment(runs(imageB), held(time.Hour), annotate(v1alpha1.OnTimeoutAnnotation, "Hold")),
			prefetch: prefetch(imageB),
			end:      EndReady,
			want:     runningB,
		},
		{"opted out past the webhook", with(holding, annotate(v1alpha1.GateAnnotation, "skip")), nil, EndOptedOut, "", 0, runningA},
		{"no longer gated", with(holding, dropAnnotation(v1alpha1.PrefetchAnnotation)), nil, EndOptedOut, "", 0, runningA},
		{"opted out and resumed past the webhook", with(holding, annotate(v1alpha1.GateAnnotation, "skip"), paused(false)), nil, EndOptedOut, "", 0, runningA},
		{
			reason: "opted out by a client-side manifest that also pauses: the pause is its owner's",
			in:     with(holding, annotate(v1alpha1.GateAnnotation, "skip"), applied(`{"paused":true}`)),
			end:    EndElsewhere,
			want:   "paused hold=- since=- released=A",
		},
		{
			reason: "opted out by a server-side manifest that also pauses",
			in:     with(holding, annotate(v1alpha1.GateAnnotation, "skip"), optsOutAndPauses),
			end:    EndElsewhere,
			want:   "paused hold=- since=- released=A",
		},
		{
			reason: "opted out by hand, and a server-side manifest says paused: false",
			in:     with(holding, annotate(v1alpha1.GateAnnotation, "skip"), ownedBy("team")),
			end:    EndOptedOut,
			want:   runningA,
		},
		{
			reason: "opted out by a manifest that pauses, and resumed since",
			in:     with(holding, annotate(v1alpha1.GateAnnotation, "skip"), applied(`{"paused":true}`), paused(false)),
			end:    EndOptedOut,
			want:   runningA,
		},
		{"set back past the webhook", with(holding, runs(imageA)), nil, EndSetBack, "", 0, runningA},
		{"resumed past the webhook: it rolls out already", with(holding, paused(false)), nil, EndResumed, "", 0, runningB},
		{"images changed past the webhook: the label follows", with(holding, label(hashOf(imageC))), nil, "", ReasonPrefetchMissing, 5 * time.Minute, stillB},
		{"images changed past the webhook, and Ready", with(holding, label(hashOf(imageC))), prefetch(imageB), EndReady, "", 0, runningB},
		{
			reason: "held-at lost past the webhook: the hold begins now",
			in:     with(holding, dropAnnotation(v1alpha1.HeldAtAnnotation)),
			wait:   ReasonPrefetchMissing,
			wakeIn: 10 * time.Minute,
			want:   heldB,
		},
		{
			reason: "held-at in the future would hold for ever",
			in:     with(holding, annotate(v1alpha1.HeldAtAnnotation, "2040-01-01T00:00:00Z")),
			wait:   ReasonPrefetchMissing,
			wakeIn: 10 * time.Minute,
			want:   heldB,
		},
		{
			reason: "a label without a value holds nothing",
			in:     deployment(runs(imageB), paused(true), label("")),
			end:    EndElsewhere,
			want:   "paused hold=- since=- released=A",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			step := Next(tt.in, tt.prefetch, empty(), now)
			if step.End != tt.end {
				t.Errorf("ends %q, want %q", step.End, tt.end)
			}
			var wait string
			if step.Wait != nil {
				wait = step.Wait.Reason
			}
			if wait != tt.wait {
				t.Errorf("waits for %q, want %q", wait, tt.wait)
			}
			var wakeIn time.Duration
			if !step.WakeAt.IsZero() {
				wakeIn = step.WakeAt.Sub(now)
			}
			if wakeIn != tt.wakeIn {
				t.Errorf("looks again in %s, want %s", wakeIn, tt.wakeIn)
			}
			in := tt.in.DeepCopy()
			in.ResourceVersion = "7"
			result := patched(t, in, Next(in, tt.prefetch, empty(), now).Patch)
			if got := describe(result); got != tt.want {
				t.Errorf("leaves %s, want %s", got, tt.want)
			}
			// The webhook agrees with the release, should it be asked about it. It never is
			// about a Deployment that opts out and is paused.
			again := Decide(Write{Old: in, New: result, Prefetch: tt.prefetch, Cluster: empty(), Now: now})
			if step.End != "" && step.End != EndElsewhere && len(again.Patch) > 0 {
				t.Errorf("the webhook would change %v", again.Patch)
			}
		})
	}
}

func TestTimedOutHoldSaysSo(t *testing.T) {
	step := Next(deployment(runs(imageB), held(time.Hour), annotate(v1alpha1.OnTimeoutAnnotation, "Hold")), nil, empty(), now)
	if !step.TimedOut || len(step.Patch) > 0 {
		t.Errorf("%+v", step)
	}
}

func TestReleaseFailsWhenTheStateMovedOn(t *testing.T) {
	version := func(v string) edit { return func(d *appsv1.Deployment) { d.ResourceVersion = v } }
	scaled := func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32); d.ResourceVersion = "8" }
	holding := deployment(runs(imageB), held(5*time.Minute), version("7"))
	optedOut := with(holding, annotate(v1alpha1.GateAnnotation, "skip"))
	timedOut := deployment(runs(imageB), held(time.Hour), version("7"))
	for _, tt := range []struct {
		reason   string
		read     *appsv1.Deployment
		prefetch *v1alpha1.ImagePrefetch
		moved    *appsv1.Deployment
		applies  bool
	}{
		{"nothing moved", holding, prefetch(imageB), holding, true},
		{"scaled, which is no concern of the gate", holding, prefetch(imageB), with(holding, scaled), true},
		{"newer images", holding, prefetch(imageB), with(holding, runs(imageC), held(0)), false},
		{"released already", holding, prefetch(imageB), with(holding, replaced), false},
		{"resumed", holding, prefetch(imageB), with(holding, paused(false)), false},
		{"taken over by the owner", holding, prefetch(imageB), with(holding, dropLabel), false},
		{"another prefetch to wait for", holding, prefetch(imageB), with(holding, annotate(v1alpha1.PrefetchAnnotation, "other")), false},
		{
			reason:   "opted out meanwhile by a manifest that pauses",
			read:     holding,
			prefetch: prefetch(imageB),
			moved:    with(holding, annotate(v1alpha1.GateAnnotation, "skip"), applied(`{"paused":true}`)),
		},
		{"opted out, and nothing moved", optedOut, nil, optedOut, true},
		{"opted in again", optedOut, nil, with(holding, version("8")), false},
		{"timed out, and nothing moved", timedOut, nil, timedOut, true},
		{"given more time", timedOut, nil, with(timedOut, annotate(v1alpha1.HoldTimeoutAnnotation, "2h"), version("8")), false},
		{"label out of step, and the object moved", with(holding, label("x")), prefetch(imageB), with(holding, label("x"), runs(imageC), version("8")), false},
		{"label out of step, and the object stands", with(holding, label("x")), prefetch(imageB), with(holding, label("x")), true},
		{"resumed when read, paused again since", with(holding, paused(false)), prefetch(imageB), with(holding, version("8")), false},
	} {
		step := Next(tt.read, tt.prefetch, empty(), now)
		if got := applies(t, tt.moved, step.Patch); got != tt.applies {
			t.Errorf("%s: applies %t, want %t", tt.reason, got, tt.applies)
		}
		if got := step.Fits(tt.moved); got != tt.applies {
			t.Errorf("%s: fits %t, want %t: whose patch fails without a test is rejected", tt.reason, got, tt.applies)
		}
	}
}

func TestWhoNeedsManagedFields(t *testing.T) {
	holding := deployment(runs(imageB), held(time.Minute))
	optedOut := with(holding, annotate(v1alpha1.GateAnnotation, "skip"))
	for _, tt := range []struct {
		reason string
		in     *appsv1.Deployment
		needs  bool
	}{
		{"a hold that goes on", holding, false},
		{"one that is opted out of: a server-side manifest may pause", optedOut, true},
		{"the client-side manifest says it already", with(optedOut, applied(`{"paused":true}`)), false},
		{"nothing is paused", with(optedOut, paused(false)), false},
	} {
		if got := NeedsManagedFields(tt.in); got != tt.needs {
			t.Errorf("%s: %t, want %t", tt.reason, got, tt.needs)
		}
	}
}
