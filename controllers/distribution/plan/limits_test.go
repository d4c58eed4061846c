// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"
	"time"
)

func TestLimitsThatAreNotSetHaveTheirDefaults(t *testing.T) {
	preset := DefaultLimits()
	set := Limits{UpstreamPullers: preset.UpstreamPullers + 1, Fanout: preset.Fanout + 1, SeedTimeout: 7 * time.Second, AgentTimeout: 8 * time.Second,
		MirrorFallback: FallbackNever}
	if got := set.orDefault(); got != set {
		t.Errorf("%+v became %+v", set, got)
	}
	for _, unset := range []Limits{{}, {UpstreamPullers: -1, Fanout: -1, SeedTimeout: -1, AgentTimeout: -1}} {
		got := unset.orDefault()
		want := Limits{UpstreamPullers: preset.UpstreamPullers, Fanout: preset.Fanout, SeedTimeout: preset.SeedTimeout,
			AgentTimeout: preset.AgentTimeout, MirrorFallback: preset.MirrorFallback}
		if got != want {
			t.Errorf("%+v became %+v, want %+v", unset, got, want)
		}
	}
}
