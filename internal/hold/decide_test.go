// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	heldB    = "paused hold=B since=0s released=A"
	stillB   = "paused hold=B since=5m0s released=A"
	runningA = "running hold=- since=- released=A"
	runningB = "running hold=- since=- released=BA"
	createdB = "running hold=- since=- released=B"
)

// applied is the annotation of client-side apply, of a manifest with this spec.
func applied(spec string) edit {
	return annotate(corev1.LastAppliedConfigAnnotation, `{"spec":`+spec+`}`)
}

func TestDecide(t *testing.T) {
	running := deployment()
	holding := deployment(runs(imageB), held(5*time.Minute))
	ownersPause := deployment(paused(true))
	neverReleased := dropAnnotation(v1alpha1.ReleasedAnnotation)
	hasPodsNow := func(d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 }
	scaledToZero := func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32) }

	for _, tt := range []struct {
		reason   string
		old, new *appsv1.Deployment
		prefetch *v1alpha1.ImagePrefetch
		outcome  Outcome
		want     string
	}{
		// Rule 1.
		{
			reason:  "an ungated Deployment is not ours to touch",
			new:     deployment(dropAnnotation(v1alpha1.PrefetchAnnotation), runs(imageB)),
			outcome: OutcomeUngated,
			want:    runningA,
		},
		{"skip lets every image through", running, with(running, runs(imageB), annotate(v1alpha1.GateAnnotation, "skip")), nil, OutcomeUngated, runningA},
		{"opting out during a hold ends it", holding, with(holding, annotate(v1alpha1.GateAnnotation, "skip")), nil, OutcomeUngated, runningA},
		{
			reason:  "a hold that lost its label under skip goes on when the owner takes skip off",
			old:     with(holding, dropLabel, annotate(v1alpha1.GateAnnotation, "skip")),
			new:     with(holding, dropLabel),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason:  "and ends when its owner drops the gate",
			old:     with(holding, dropLabel, annotate(v1alpha1.GateAnnotation, "skip")),
			new:     with(holding, dropLabel, dropAnnotation(v1alpha1.PrefetchAnnotation)),
			outcome: OutcomeUngated,
			want:    runningA,
		},
		{
			reason:  "a program that overwrites annotations, and drops the gate: the pause goes with the hold",
			old:     holding,
			new:     with(holding, overwritten, dropAnnotation(v1alpha1.PrefetchAnnotation)),
			outcome: OutcomeUngated,
			want:    "running hold=- since=- released=-",
		},
		{"removing the gate during a hold ends it", holding, with(holding, dropAnnotation(v1alpha1.PrefetchAnnotation)), nil, OutcomeUngated, runningA},
		{
			reason:  "opting out leaves the owner's pause",
			old:     ownersPause,
			new:     with(ownersPause, annotate(v1alpha1.GateAnnotation, "skip")),
			outcome: OutcomeUngated,
			want:    "paused hold=- since=- released=A",
		},
		{"images set back during a hold end it", holding, with(holding, runs(imageA)), nil, OutcomeKnown, runningA},
		{
			reason:  "an undo brings back the released hash with the images",
			old:     deployment(runs(imageB), annotate(v1alpha1.ReleasedAnnotation, hashOf(imageB))),
			new:     running,
			outcome: OutcomeKnown,
			want:    "running hold=- since=- released=AB",
		},
		{"an env-only change is not held", running, with(running, environment("2")), pulling(imageA), OutcomeKnown, runningA},
		{"a restart is not held", running, with(running, func(d *appsv1.Deployment) {
			d.Spec.Template.Annotations = map[string]string{"kubectl.kubernetes.io/restartedAt": "now"}
		}), nil, OutcomeKnown, runningA},
		{"replacing the object with the same images keeps the record", running, with(running, replaced), nil, OutcomeKnown, runningA},
		{"replacing it with released images during a hold ends the hold", holding, with(holding, replaced, runs(imageA)), nil, OutcomeKnown, runningA},
		{"the same images under another name are the same", running, with(running, runs("ghcr.io/org/app:a")), nil, OutcomeKnown, runningA},

		// Rule 4.
		{"ready at creation from an exported manifest, also when called again", nil, deployment(runs(imageB)), prefetch(imageB), OutcomeReady, createdB},
		{"ready at creation", nil, deployment(neverReleased, runs(imageB)), prefetch(imageA, imageB), OutcomeReady, createdB},
		{"ready at the change", running, with(running, runs(imageB)), prefetch(imageB), OutcomeReady, runningB},
		{"ready by the next change", holding, with(holding, environment("2")), prefetch(imageB), OutcomeReady, runningB},
		{
			reason:   "ready while the owner pauses: still paused, and judged when resumed",
			old:      ownersPause,
			new:      with(ownersPause, runs(imageB)),
			prefetch: prefetch(imageB),
			outcome:  OutcomeOwnerPaused,
			want:     "paused hold=- since=- released=A",
		},
		{"ready when resumed", with(ownersPause, runs(imageB)), deployment(runs(imageB)), prefetch(imageB), OutcomeReady, runningB},

		// Rule 3.
		{
			reason:  "created paused from an exported manifest: when resumed, it is held",
			new:     deployment(paused(true)),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=-",
		},
		{
			reason:  "created paused by its owner",
			new:     deployment(neverReleased, runs(imageB), paused(true)),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=-",
		},
		{
			reason:  "paused by its owner with the change",
			old:     running,
			new:     with(running, runs(imageB), paused(true)),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=A",
		},
		{"new images under the owner's pause", ownersPause, with(ownersPause, runs(imageB)), nil, OutcomeOwnerPaused, "paused hold=- since=- released=A"},
		{
			reason:  "our label on the owner's pause does not make it ours",
			old:     with(ownersPause, runs(imageB)),
			new:     with(ownersPause, runs(imageB), label("x")),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=A",
		},
		{
			reason:  "client-side apply of a manifest that now pauses",
			old:     with(holding, applied(`{}`)),
			new:     with(holding, applied(`{"paused":true}`)),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=A",
		},
		{
			reason:  "client-side apply of a manifest that was read from a held Deployment",
			old:     holding,
			new:     with(holding, annotate(corev1.LastAppliedConfigAnnotation, `{"metadata":{"labels":{"sluice.dev/hold":"x"}},"spec":{"paused":true}}`)),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason: "of one whose labels a program has replaced",
			old:    holding,
			new: with(holding, dropLabel, annotate(corev1.LastAppliedConfigAnnotation,
				`{"metadata":{"annotations":{"sluice.dev/held-at":"2030-01-02T02:59:05Z"}},"spec":{"paused":true}}`)),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason: "of one whose labels and annotations a program has replaced",
			old:    holding,
			new: with(holding, dropLabel, annotate(corev1.LastAppliedConfigAnnotation,
				`{"metadata":{"uid":"1"},"spec":{"paused":true}}`)),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason: "of one that has its version",
			old:    holding,
			new: with(holding, dropLabel, annotate(corev1.LastAppliedConfigAnnotation,
				`{"metadata":{"resourceVersion":"1"},"spec":{"paused":true}}`)),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason: "server-side apply of one whose labels a program has replaced",
			old:    holding,
			new: with(holding, func(d *appsv1.Deployment) {
				d.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "program", Operation: metav1.ManagedFieldsOperationApply,
					FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{"f:sluice.dev/held-at":{}}},"f:spec":{"f:paused":{}}}`)}}
			}),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason: "server-side apply of one",
			old:    holding,
			new: with(holding, func(d *appsv1.Deployment) {
				d.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "program", Operation: metav1.ManagedFieldsOperationApply,
					FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{"f:sluice.dev/hold":{}}},"f:spec":{"f:paused":{}}}`)}}
			}),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason:  "new images under the owner's pause of a version that ran before the gate: it is remembered",
			old:     deployment(neverReleased, dropAnnotation(v1alpha1.PrefetchAnnotation), paused(true), hasPodsNow),
			new:     deployment(neverReleased, paused(true), runs(imageB)),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=A",
		},
		{
			reason:  "and of one that has yet to be seen: it is not",
			old:     deployment(neverReleased, paused(true), hasPodsNow, func(d *appsv1.Deployment) { d.Generation++ }),
			new:     deployment(neverReleased, paused(true), runs(imageB)),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=-",
		},
		{
			reason:  "server-side apply of a manifest that now pauses",
			old:     holding,
			new:     with(holding, ownedBy("team")),
			outcome: OutcomeOwnerPaused,
			want:    "paused hold=- since=- released=A",
		},

		// Rule 2: what rolls out already is never frozen.
		{
			reason:  "gated in the middle of a rollout",
			old:     deployment(dropAnnotation(v1alpha1.PrefetchAnnotation), neverReleased, runs(imageB)),
			new:     deployment(neverReleased, runs(imageB)),
			outcome: OutcomeKnown,
			want:    createdB,
		},
		{
			reason:  "an env-only change of what was never recorded",
			old:     deployment(neverReleased, runs(imageB)),
			new:     deployment(neverReleased, runs(imageB), environment("2")),
			outcome: OutcomeKnown,
			want:    createdB,
		},
		{
			reason:  "another prefetch named, the same images",
			old:     deployment(neverReleased, runs(imageB)),
			new:     deployment(neverReleased, runs(imageB), annotate(v1alpha1.PrefetchAnnotation, "other")),
			outcome: OutcomeKnown,
			want:    createdB,
		},
		{
			reason:  "the way out closed again",
			old:     deployment(runs(imageB), annotate(v1alpha1.GateAnnotation, "skip")),
			new:     deployment(runs(imageB)),
			outcome: OutcomeKnown,
			want:    runningB,
		},
		{"a label that someone sets on what rolls out is removed", deployment(runs(imageB)), deployment(runs(imageB), label("x")), nil, OutcomeKnown, runningB},

		// Rule 5.
		{
			reason:  "a program that overwrites labels and annotations, with the template",
			old:     holding,
			new:     with(holding, overwritten, runs(imageC)),
			outcome: OutcomeHeld,
			want:    "paused hold=C since=0s released=A",
		},
		{"a program that overwrites labels and annotations, and nothing else", holding, with(holding, overwritten), nil, OutcomeHeld, stillB},
		{"a program that overwrites them, paused as it read it", holding, with(holding, replaced, paused(true)), nil, OutcomeHeld, stillB},
		{
			reason:  "images rewritten by another webhook in between, where the owner resumes and changes them in one write",
			old:     with(ownersPause, runs(imageB)),
			new:     deployment(runs(imageC), held(2*time.Second), label(hashOf(imageA))),
			outcome: OutcomeHeld,
			want:    "paused hold=C since=2s released=A",
		},
		{"created before its prefetch", nil, deployment(neverReleased, runs(imageB)), nil, OutcomeHeld, "paused hold=B since=0s released=-"},
		{"new images", running, with(running, runs(imageB)), pulling(imageB), OutcomeHeld, heldB},
		{"the prefetch lists other tags", running, with(running, runs(imageB)), prefetch(imageA), OutcomeHeld, heldB},
		{
			reason:   "the prefetch has changed since it was Ready",
			old:      running,
			new:      with(running, runs(imageB)),
			prefetch: func() *v1alpha1.ImagePrefetch { p := prefetch(imageB); p.Generation++; return p }(),
			outcome:  OutcomeHeld,
			want:     heldB,
		},
		{"the prefetch is being deleted", running, with(running, runs(imageB)), func() *v1alpha1.ImagePrefetch {
			p := prefetch(imageB)
			p.DeletionTimestamp = &metav1.Time{Time: now}
			return p
		}(), OutcomeHeld, heldB},
		{
			reason:  "scaled to zero is held as well: it may be scaled up any time",
			old:     with(running, scaledToZero),
			new:     with(running, scaledToZero, runs(imageB)),
			outcome: OutcomeHeld,
			want:    heldB,
		},
		{"gated and changed at once", with(running, dropAnnotation(v1alpha1.PrefetchAnnotation)), with(running, runs(imageB)), nil, OutcomeHeld, heldB},
		{
			reason:  "newer images during a hold begin another",
			old:     deployment(runs(imageC), held(5*time.Minute)),
			new:     deployment(runs(imageB), held(0), label(hashOf(imageC))),
			outcome: OutcomeHeld,
			want:    heldB,
		},
		{"an env-only change during a hold goes on with it", holding, with(holding, environment("2")), nil, OutcomeHeld, stillB},
		{"resumed by hand during a hold", holding, with(holding, paused(false)), nil, OutcomeHeld, stillB},
		{"replaced during a hold", holding, with(holding, replaced), nil, OutcomeHeld, stillB},
		{
			reason:  "client-side apply with paused: false during a hold",
			old:     with(holding, applied(`{"paused":false}`)),
			new:     with(holding, applied(`{"paused":false}`), paused(false)),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason:  "server-side apply with paused: false during a hold",
			old:     with(holding, ownedBy("team")),
			new:     with(holding, ownedBy("team"), paused(false)),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason:  "server-side apply that owned the field before",
			old:     with(holding, ownedBy("team")),
			new:     with(holding, ownedBy("team"), environment("2")),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{
			reason:  "a manifest applied as before that pauses, resumed by hand since",
			old:     with(holding, applied(`{"paused":true}`)),
			new:     with(holding, applied(`{"paused":true}`), environment("2")),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{"labels overwritten by a program during a hold", holding, with(holding, dropLabel), nil, OutcomeHeld, stillB},
		{
			reason:  "held-at removed or moved during a hold",
			old:     holding,
			new:     with(holding, annotate(v1alpha1.HeldAtAnnotation, "2040-01-01T00:00:00Z")),
			outcome: OutcomeHeld,
			want:    stillB,
		},
		{"the label forged during a hold", holding, with(holding, label("x")), nil, OutcomeHeld, stillB},
		{"the owner resumes, and images are missing", with(ownersPause, runs(imageB)), deployment(runs(imageB)), nil, OutcomeHeld, heldB},
		{
			reason:  "created from the manifest of a held one, an hour old",
			new:     deployment(runs(imageB), held(time.Hour)),
			outcome: OutcomeHeld,
			want:    "paused hold=B since=0s released=-",
		},
		{"created from the manifest of a released one: elsewhere or long ago", nil, deployment(), nil, OutcomeHeld, "paused hold=A since=0s released=-"},
		{
			reason:  "created from one that released other images, which must not pass the next update",
			new:     deployment(runs(imageB)),
			outcome: OutcomeHeld,
			want:    "paused hold=B since=0s released=-",
		},
		{"called again for the creation of what is Ready no more", nil, deployment(), pulling(imageA), OutcomeHeld, "paused hold=A since=0s released=-"},
		{
			reason:  "called again within the same request, by another clock",
			new:     deployment(runs(imageB), held(2*time.Second)),
			outcome: OutcomeHeld,
			want:    "paused hold=B since=2s released=-",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			before, beforeNew := tt.old.DeepCopy(), tt.new.DeepCopy()
			decision := Decide(Write{Old: tt.old, New: tt.new, Prefetch: tt.prefetch, Cluster: empty(), Now: now})
			if decision.Outcome != tt.outcome {
				t.Errorf("outcome %s, want %s", decision.Outcome, tt.outcome)
			}
			result := patched(t, tt.new, decision.Patch)
			if got := describe(result); got != tt.want {
				t.Errorf("leaves %s, want %s", got, tt.want)
			}
			if before.String() != tt.old.String() || beforeNew.String() != tt.new.String() {
				t.Error("the input was changed")
			}
			again := Decide(Write{Old: tt.old, New: result, Prefetch: tt.prefetch, Cluster: empty(), Now: now.Add(3 * time.Second)})
			if len(again.Patch) > 0 {
				t.Errorf("called again it changes %v", again.Patch)
			}
		})
	}
}

func TestWarningsSayWhatIsMissing(t *testing.T) {
	holding := deployment(runs(imageB), held(time.Minute))
	for _, tt := range []struct {
		reason   string
		old, new *appsv1.Deployment
		prefetch *v1alpha1.ImagePrefetch
		says     []string
	}{
		{
			reason: "no prefetch",
			old:    deployment(),
			new:    deployment(runs(imageB)),
			says:   []string{`ImagePrefetch "app" does not exist`, "(for at most 10m)", "sluice.dev/gate=skip"},
		},
		{"other tags", deployment(), deployment(runs(imageB)), prefetch(imageA), []string{`ImagePrefetch "app" does not list ` + imageB}},
		{"many images", deployment(), deployment(runs("a:1", "b:1", "c:1", "d:1", "e:1")), prefetch(imageA), []string{"docker.io/library/c:1 and 2 more"}},
		{"on its way", deployment(), deployment(runs(imageB)), pulling(imageB), []string{"1 of 1 nodes that its Pods can run on still lack " + imageB}},
		{
			reason:   "failing",
			old:      deployment(),
			new:      deployment(runs(imageB)),
			prefetch: failing(imageB),
			says:     []string{"1 of 1 nodes that its Pods can run on still lack " + imageB + ": ImagePullUnauthorized on node-7"},
		},
		{"resumed", holding, with(holding, paused(false)), nil, []string{"not resumed but held"}},
		{"no timeout", deployment(), deployment(runs(imageB), annotate(v1alpha1.HoldTimeoutAnnotation, "0")), nil, []string{"without end"}},
		{
			reason: "on-timeout Hold",
			old:    deployment(),
			new:    deployment(runs(imageB), annotate(v1alpha1.HoldTimeoutAnnotation, "90s"), annotate(v1alpha1.OnTimeoutAnnotation, "Hold")),
			says:   []string{"(even after the 1m30s timeout)"},
		},
		{"taken over by the owner", with(holding, applied(`{}`)), with(holding, applied(`{"paused":true}`)), nil, []string{"paused by you"}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			warnings := Decide(Write{Old: tt.old, New: tt.new, Prefetch: tt.prefetch, Cluster: empty(), Now: now}).Warnings
			if len(warnings) != 1 {
				t.Fatalf("warnings %q, want one", warnings)
			}
			for _, says := range tt.says {
				if !strings.Contains(warnings[0], says) {
					t.Errorf("%q lacks %q", warnings[0], says)
				}
			}
		})
	}
}
