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

// FuzzAnnotations reads any annotations of a Deployment, those that Sluice writes itself among them:
// tenants can write them as well.
func FuzzAnnotations(f *testing.F) {
	f.Add("app", "10m", "Release", "", "2026-01-02T03:04:05Z", "0123456789abcdef", `{"spec":{"paused":true}}`)
	f.Add("app", "0", "Hold", "skip", "", "a,b", "{}")
	f.Add("", "-1s", "hold", "Skip", "yesterday", ",,,", "null")
	f.Add("a/b", "9223372036s", "", "", "9999-12-31T23:59:59Z", "\xff", `{"spec":[]}`)
	f.Add("app", "2562047h47m16.854775807s", "Release", "", "0001-01-01T00:00:00Z", "x y", `{"spec":{"paused":"true"}}`)
	f.Fuzz(func(t *testing.T, prefetch, timeout, onTimeout, gate, heldAt, released, applied string) {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{
			Name: "app", Namespace: "team", ResourceVersion: "7", Labels: map[string]string{v1alpha1.HoldLabel: "0123456789abcdef"},
			Annotations: map[string]string{
				v1alpha1.PrefetchAnnotation: prefetch, v1alpha1.HoldTimeoutAnnotation: timeout, v1alpha1.OnTimeoutAnnotation: onTimeout,
				v1alpha1.GateAnnotation: gate, v1alpha1.HeldAtAnnotation: heldAt, v1alpha1.ReleasedAnnotation: released,
				corev1.LastAppliedConfigAnnotation: applied,
			},
		}}
		d.Spec.Paused = true
		for key, text := range d.Annotations { // as the API server has them
			d.Annotations[key] = strings.ToValidUTF8(text, "?")
		}

		settings, wrong := SettingsOf(d)
		again, wrongAgain := SettingsOf(d)
		if settings != again || wrong.ToAggregate() != nil && wrong.ToAggregate().Error() != wrongAgain.ToAggregate().Error() {
			t.Errorf("read twice they say something else: %+v %+v", settings, again)
		}
		if settings.Timeout < 0 || settings.OnTimeout != OnTimeoutRelease && settings.OnTimeout != OnTimeoutHold {
			t.Errorf("settings that nothing can follow: %+v", settings)
		}
		if parsed, err := time.ParseDuration(d.Annotations[v1alpha1.HoldTimeoutAnnotation]); err == nil && parsed >= 0 && settings.Timeout != parsed {
			t.Errorf("a timeout of %s is read as %s", parsed, settings.Timeout)
		}
		if len(wrong) > 4 {
			t.Errorf("%d errors of four annotations", len(wrong))
		}
		// Whatever they say, what was held can be let go.
		left := patched(t, d, Undo(d))
		_, marked := left.Annotations[v1alpha1.HeldAtAnnotation]
		if _, labelled := left.Labels[v1alpha1.HoldLabel]; labelled || marked {
			t.Errorf("marks of the hold stay: %v %v", left.Labels, left.Annotations)
		}
		if known := releasesIn(left); len(known) > maxReleases {
			t.Errorf("%d sets of images are remembered", len(known))
		}
	})
}
