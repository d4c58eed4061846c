// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/test/defaults"
)

func TestDefaultsAreThoseOfTheChartAndItsGuide(t *testing.T) {
	var options Options
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	options.addFlags(flags)
	defaults.Flags(t, "../..", "controller", flags,
		"webhook-bind-address", "credentials-bind-address", "certificate-secret", "agent-daemonset")
}

// The chart does not set these addresses, but names their ports.
func TestPortsAreThoseOfTheChart(t *testing.T) {
	options, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	ports := defaults.Pod(t, "../..", "controller").Containers[0].Ports
	for name, address := range map[string]string{"metrics": options.MetricsBindAddress, "probes": options.HealthProbeBindAddress} {
		at := slices.IndexFunc(ports, func(port corev1.ContainerPort) bool { return port.Name == name })
		if at < 0 || fmt.Sprintf(":%d", ports[at].ContainerPort) != address {
			t.Errorf("the controller serves %s at %s, which is not among %+v", name, address, ports)
		}
	}
}

func TestAgentsAskForATokenOfTheEndpointsAudience(t *testing.T) {
	options, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	var audiences []string
	for _, volume := range defaults.Pod(t, "../..", "agent").Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if source.ServiceAccountToken != nil {
				audiences = append(audiences, source.ServiceAccountToken.Audience)
			}
		}
	}
	if !slices.Equal(audiences, []string{options.Credentials.Audience}) {
		t.Errorf("agents get tokens for %q, the endpoint takes those for %q", audiences, options.Credentials.Audience)
	}
}
