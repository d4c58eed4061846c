// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestPullPolicyAlwaysIsWarnedOf(t *testing.T) {
	policy := func(image string, policy corev1.PullPolicy) edit {
		return func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.InitContainers = []corev1.Container{{Image: image, ImagePullPolicy: policy}}
		}
	}
	for _, tt := range []struct {
		reason string
		edit   edit
		warns  bool
	}{
		{"asked for", policy(imageA, corev1.PullAlways), true},
		{"implied by latest", policy("nginx", ""), true},
		{"latest, but IfNotPresent", policy("nginx", corev1.PullIfNotPresent), false},
		{"a tag implies IfNotPresent", policy(imageA, ""), false},
		{"an image volume", func(d *appsv1.Deployment) {
			volume := &corev1.ImageVolumeSource{Reference: imageA, PullPolicy: corev1.PullAlways}
			d.Spec.Template.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Image: volume}}}
		}, true},
		{"not gated: nobody expects the image to be there", func(d *appsv1.Deployment) {
			policy(imageA, corev1.PullAlways)(d)
			delete(d.Annotations, v1alpha1.PrefetchAnnotation)
		}, false},
	} {
		warnings := Decide(Write{New: deployment(tt.edit), Prefetch: prefetch(imageA, "nginx"), Cluster: empty(), Now: now}).Warnings
		if got := slices.ContainsFunc(warnings, func(s string) bool { return strings.HasPrefix(s, "imagePullPolicy Always") }); got != tt.warns {
			t.Errorf("%s: warned %t, want %t: %q", tt.reason, got, tt.warns, warnings)
		}
	}
}
