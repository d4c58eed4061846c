// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestRestore(t *testing.T) {
	version := func(d *appsv1.Deployment) { d.ResourceVersion = "7" }
	orphan := deployment(runs(imageB), held(0), dropLabel, version)
	for _, tt := range []struct {
		reason string
		in     *appsv1.Deployment
		want   bool
	}{
		{"paused by Sluice, and the label is lost", orphan, true},
		{"the same, and it skips the gate by now", with(orphan, annotate(v1alpha1.GateAnnotation, "skip")), true},
		{"all labels are lost", with(orphan, func(d *appsv1.Deployment) { d.Labels = nil }), true},
		{"a hold that has its label", deployment(runs(imageB), held(0)), false},
		{"the owner's pause", deployment(paused(true)), false},
		{"resumed since", with(orphan, paused(false)), false},
		{"being deleted", with(orphan, func(d *appsv1.Deployment) { d.DeletionTimestamp = &metav1.Time{Time: now} }), false},
	} {
		patch := Restore(tt.in)
		if got := len(patch) > 0; got != tt.want {
			t.Errorf("%s: restored %t, want %t", tt.reason, got, tt.want)
		}
		if tt.want {
			if restored := patched(t, tt.in, patch); restored.Labels[v1alpha1.HoldLabel] != hashOf(imageB) || !restored.Spec.Paused {
				t.Errorf("%s: leaves %s", tt.reason, describe(restored))
			}
			if applies(t, with(tt.in, func(d *appsv1.Deployment) { d.ResourceVersion = "8" }), patch) {
				t.Errorf("%s: applies to what has changed since", tt.reason)
			}
		}
	}
}

func TestUndo(t *testing.T) {
	version := func(d *appsv1.Deployment) { d.ResourceVersion = "7" }
	emptyLabel := func(d *appsv1.Deployment) { metav1.SetMetaDataLabel(&d.ObjectMeta, v1alpha1.HoldLabel, "") }
	hold := deployment(runs(imageB), held(0), version)
	for _, tt := range []struct {
		reason                  string
		in                      *appsv1.Deployment
		changes, paused, passed bool
	}{
		{"a hold", hold, true, false, true},
		{"a hold without its label", with(hold, dropLabel), true, false, true},
		{"a hold whose label was emptied", with(hold, emptyLabel), true, false, true},
		{"a hold of other images than the template's", with(hold, runs(imageC)), true, false, true},
		{"resumed past the webhook", with(hold, paused(false)), true, false, true},
		{"opted out by a manifest that pauses", with(hold, annotate(v1alpha1.GateAnnotation, "skip"), annotate(corev1.LastAppliedConfigAnnotation, `{"spec":{"paused":true}}`)), true, true, false},
		{"the owner's pause with our label, empty", deployment(runs(imageB), paused(true), emptyLabel, version), true, true, false},
		{"the owner's pause", deployment(paused(true), version), false, true, false},
		{"one that was never held", deployment(version), false, false, false},
	} {
		patch := Undo(tt.in)
		if changes := len(patch) > 0; changes != tt.changes {
			t.Errorf("%s: changed %t, want %t", tt.reason, changes, tt.changes)
			continue
		}
		if !tt.changes {
			continue
		}
		got, images := patched(t, tt.in, patch), ImagesOf(&tt.in.Spec.Template.Spec).Hash()
		_, labelled := got.Labels[v1alpha1.HoldLabel]
		if labelled || got.Annotations[v1alpha1.HeldAtAnnotation] != "" || got.Spec.Paused != tt.paused || releasesIn(got).include(images) != tt.passed {
			t.Errorf("%s: leaves %s, want paused %t, its images passed %t", tt.reason, describe(got), tt.paused, tt.passed)
		}
		if applies(t, with(tt.in, func(d *appsv1.Deployment) { d.ResourceVersion = "8" }), patch) {
			t.Errorf("%s: applies to what has changed since", tt.reason)
		}
	}
}
