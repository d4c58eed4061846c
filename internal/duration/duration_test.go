// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package duration

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFormat(t *testing.T) {
	for _, tt := range []struct {
		reason, in, want string
	}{
		{"minutes", "10m", "10m"},
		{"hours", "100h", "100h"},
		{"hours and seconds", "1h5s", "1h5s"},
		{"hours and minutes", "1h10m", "1h10m"},
		{"minutes and seconds", "90s", "1m30s"},
		{"seconds that end in a zero", "20m10s", "20m10s"},
		{"minutes that end in a zero", "10h20m", "10h20m"},
		{"a part of a second", "1m0.5s", "1m0.5s"},
		{"less than a second", "250ms", "250ms"},
		{"less than nothing", "-10m", "-10m"},
		{"nothing", "0", "0s"},
	} {
		d, err := time.ParseDuration(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := Format(d); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.reason, got, tt.want)
		}
	}
}

func TestFormatLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SampledFrom([]time.Duration{time.Nanosecond, time.Millisecond, time.Second, time.Minute, time.Hour}).Draw(t, "unit")
		d := unit * time.Duration(rapid.Int32().Draw(t, "number"))
		text := Format(d)
		if got, err := time.ParseDuration(text); err != nil || got != d {
			t.Fatalf("%v is written %s, which reads %v, %v", d, text, got, err)
		}
		if d != 0 && (strings.Contains(text, "h0m") || strings.HasSuffix(text, "m0s")) {
			t.Fatalf("%v is written %s", d, text)
		}
	})
}
