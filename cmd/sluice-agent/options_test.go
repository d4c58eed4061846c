// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func parse(t *testing.T, args ...string) (options, error) {
	t.Helper()
	opts := defaultOptions()
	flags := pflag.NewFlagSet("sluice-agent", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	opts.addFlags(flags)
	return opts, flags.Parse(args)
}

func TestDefaultsAreThoseOfContainerdAndTheKubelet(t *testing.T) {
	t.Setenv("NODE_NAME", "node-a")
	opts, err := parse(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := opts.validate(); err != nil {
		t.Fatal(err)
	}
	want := options{
		NodeName: "node-a", ContainerdAddress: "/run/containerd/containerd.sock", ContainerdNamespace: "k8s.io",
		RegistryConfigPath: "/etc/containerd/certs.d", Snapshotter: "overlayfs", MaxParallelPulls: 3,
		NoProgressTimeout: time.Minute, VerifyInterval: 10 * time.Minute, MinFreeDisk: 15,
		HealthProbeBindAddress: ":8081", MetricsBindAddress: ":8080",
	}
	if opts != want {
		t.Errorf("defaults %+v, want %+v", opts, want)
	}
}

func TestEachFlagSetsItsOption(t *testing.T) {
	opts, err := parse(t, "--node-name=n", "--kubeconfig=/k", "--containerd-address=/c", "--containerd-namespace=ns",
		"--registry-config-path=/r", "--snapshotter=native", "--max-parallel-pulls=7", "--no-progress-timeout=2m",
		"--verify-interval=1h", "--min-free-disk=7.5%", "--health-probe-bind-address=:1", "--metrics-bind-address=:2", "--v=2")
	if err != nil {
		t.Fatal(err)
	}
	want := options{
		NodeName: "n", Kubeconfig: "/k", ContainerdAddress: "/c", ContainerdNamespace: "ns", RegistryConfigPath: "/r",
		Snapshotter: "native", MaxParallelPulls: 7, NoProgressTimeout: 2 * time.Minute, VerifyInterval: time.Hour,
		MinFreeDisk: 7.5, HealthProbeBindAddress: ":1", MetricsBindAddress: ":2", LogLevel: 2,
	}
	if opts != want {
		t.Errorf("options %+v, want %+v", opts, want)
	}
	if share := opts.MinFreeDisk.share(); share != 0.075 {
		t.Errorf("share %v", share)
	}
}

func TestValidate(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, tt := range []struct {
		reason string
		args   []string
		want   string // in the error; empty: valid
	}{
		{"a name is enough", []string{"--node-name=n"}, ""},
		{"without a name it would watch every node", nil, "--node-name"},
		{"containerd would take a relative path for its own", []string{"--node-name=n", "--registry-config-path=certs.d"}, "--registry-config-path"},
		{"a socket has a path", []string{"--node-name=n", "--containerd-address=unix:///run/c.sock"}, "--containerd-address"},
		{"no namespace", []string{"--node-name=n", "--containerd-namespace="}, "--containerd-namespace"},
		{"no snapshotter", []string{"--node-name=n", "--snapshotter="}, "--snapshotter"},
		{"no pulls", []string{"--node-name=n", "--max-parallel-pulls=0"}, "--max-parallel-pulls"},
		{"no patience", []string{"--node-name=n", "--no-progress-timeout=10ms"}, "--no-progress-timeout"},
		{"a hot loop", []string{"--node-name=n", "--verify-interval=0s"}, "--verify-interval"},
		{"a level below 0", []string{"--node-name=n", "--v=-1"}, "--v"},
		{"the disk check can be turned off", []string{"--node-name=n", "--min-free-disk=0"}, ""},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			opts, err := parse(t, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			err = opts.validate()
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Count(err.Error(), "\n") != 0 {
				t.Errorf("error %v, want one that names %s alone", err, tt.want)
			}
		})
	}
}

func TestPercentageRefuses(t *testing.T) {
	for _, in := range []string{"", "x", "-1", "100", "5%%", "5 percent", "0.15x"} {
		if _, err := parse(t, "--min-free-disk="+in); err == nil {
			t.Errorf("--min-free-disk=%q was taken", in)
		}
	}
}
