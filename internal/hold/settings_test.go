// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestAnnotationsThatCannotBeUnderstood(t *testing.T) {
	for _, tt := range []struct{ key, value, says string }{
		{v1alpha1.PrefetchAnnotation, "", "name of an ImagePrefetch"},
		{v1alpha1.PrefetchAnnotation, "other/app", "name of an ImagePrefetch"},
		{v1alpha1.HoldTimeoutAnnotation, "10", `"10m"`},
		{v1alpha1.HoldTimeoutAnnotation, "10 minutes", `"10m"`},
		{v1alpha1.HoldTimeoutAnnotation, "-1m", `"10m"`},
		{v1alpha1.HoldTimeoutAnnotation, "", `"10m"`},
		{v1alpha1.OnTimeoutAnnotation, "release", `"Release" or "Hold"`},
		{v1alpha1.GateAnnotation, "true", `"skip"`},
	} {
		t.Run(tt.key+"="+tt.value, func(t *testing.T) {
			broken := deployment(annotate(tt.key, tt.value))
			rejected := Decide(Write{Old: deployment(), New: broken, Cluster: empty(), Now: now})
			if rejected.Outcome != OutcomeRejected || len(rejected.Patch) > 0 {
				t.Fatalf("%+v, want it rejected", rejected)
			}
			if text := rejected.Rejected.ToAggregate().Error(); !strings.Contains(text, tt.says) || !strings.Contains(text, tt.key) {
				t.Errorf("%q does not say %q of %s", text, tt.says, tt.key)
			}
			stored := Decide(Write{Old: broken, New: with(broken, environment("2")), Cluster: empty(), Now: now})
			if stored.Outcome == OutcomeRejected {
				t.Error("what was stored before is in the way of another change")
			}
			if !strings.Contains(strings.Join(stored.Warnings, ""), tt.says) {
				t.Errorf("warnings %q do not say %q", stored.Warnings, tt.says)
			}
		})
	}
}
