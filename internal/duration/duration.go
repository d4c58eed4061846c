// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package duration writes durations for people.
package duration

import (
	"strings"
	"time"
)

// zeroUnits shortens what time.Duration.String writes for units that are zero.
var zeroUnits = strings.NewReplacer("h0m0s", "h", "h0m", "h", "m0s", "m")

// Format writes d in the syntax of time.ParseDuration, without the units that are zero:
// 10m, not 10m0s. Zero itself is 0s.
func Format(d time.Duration) string { return zeroUnits.Replace(d.String()) }
