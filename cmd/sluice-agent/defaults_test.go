// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/test/defaults"
)

func TestDefaultsAreThoseOfTheChartAndItsGuide(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	var options Options
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	options.addFlags(flags)
	defaults.Flags(t, "../..", "agent", flags, "node-name", "credentials-url", "credentials-token-file", "credentials-ca-configmap")
}
