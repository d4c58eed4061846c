// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/internal/logging"
)

func TestDefaultsAreThoseOfContainerdAndTheKubelet(t *testing.T) {
	t.Setenv("NODE_NAME", "node-a")
	options, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Options{
		NodeName: "node-a", ContainerdAddress: "/run/containerd/containerd.sock", ContainerdNamespace: "k8s.io",
		RegistryConfigPath: "/etc/containerd/certs.d", ScratchPath: "/run/sluice", MaxParallelPulls: 3,
		NoProgressTimeout: time.Minute, VerifyInterval: 10 * time.Minute, MinFreeDisk: 15,
		HealthProbeBindAddress: ":8081", MetricsBindAddress: ":8080", Log: logging.Options{Format: logging.FormatJSON},
	}
	if !reflect.DeepEqual(options, want) {
		t.Errorf("defaults %+v, want %+v", options, want)
	}
}

func TestEachFlagSetsItsOption(t *testing.T) {
	options, err := parse(strings.Fields("--node-name=n --kubeconfig=/k --containerd-address=/c --containerd-namespace=ns " +
		"--registry-config-path=/r --scratch-path=/s --upstream-hosts=a,b:5000 --mirror-redirect-hosts=c,d:9000 --max-parallel-pulls=7 --no-progress-timeout=2m --verify-interval=1h " +
		"--min-free-disk=7.5% --kubelet-config=/kubelet.yaml --health-probe-bind-address=:1 --metrics-bind-address=:2 --log-format=text -v 2"))
	if err != nil {
		t.Fatal(err)
	}
	want := Options{
		NodeName: "n", Kubeconfig: "/k", ContainerdAddress: "/c", ContainerdNamespace: "ns", RegistryConfigPath: "/r", ScratchPath: "/s", UpstreamHosts: []string{"a", "b:5000"},
		MirrorRedirectHosts: []string{"c", "d:9000"},
		MaxParallelPulls:    7, NoProgressTimeout: 2 * time.Minute, VerifyInterval: time.Hour,
		MinFreeDisk: 7.5, KubeletConfig: "/kubelet.yaml", HealthProbeBindAddress: ":1", MetricsBindAddress: ":2",
		Log: logging.Options{Format: logging.FormatText, Verbosity: 2},
	}
	if !reflect.DeepEqual(options, want) {
		t.Errorf("options %+v, want %+v", options, want)
	}
	if share := options.MinFreeDisk.share(); share != 0.075 {
		t.Errorf("share %v", share)
	}
}

func TestVersionNeedsNoOtherFlag(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	if options, err := parse([]string{"--version"}); err != nil || !options.Version {
		t.Errorf("got %+v, %v", options, err)
	}
}

func TestWrongOptionsAreRejectedWithWhatToWrite(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, tt := range []struct{ reason, line, want string }{
		{"a name is enough", "--node-name=n", ""},
		{"a check needs no name", "--check", ""},
		{"but what it goes by", "--check --scratch-path=s", "--scratch-path must be an absolute path, not \"s\": containerd would look elsewhere"},
		{"without a name it would watch every node", "", "--node-name or NODE_NAME must be set"},
		{
			"containerd would take a relative path for its own", "--node-name=n --registry-config-path=certs.d",
			`--registry-config-path must be an absolute path, or several with : between them, not "certs.d": containerd would look elsewhere`,
		},
		{
			"a socket has a path", "--node-name=n --containerd-address=unix:///run/c.sock",
			`--containerd-address must be an absolute path, not "unix:///run/c.sock"`,
		},
		{"no namespace", "--node-name=n --containerd-namespace=", "--containerd-namespace must be set, such as k8s.io"},
		{"a file somewhere", "--node-name=n --kubelet-config=config.yaml", `--kubelet-config must be an absolute path, not "config.yaml"`},
		{"no pulls", "--node-name=n --max-parallel-pulls=0", "--max-parallel-pulls must be 1 or more, not 0"},
		{
			"no pull gets anywhere in so short a time", "--node-name=n --no-progress-timeout=10ms",
			"--no-progress-timeout must be 1s or more, such as 1m, not 10ms",
		},
		{"a hot loop", "--node-name=n --verify-interval=0s", "--verify-interval must be 1s or more, such as 10m, not 0s"},
		{"a level below 0", "--node-name=n --verbosity=-1", "--verbosity must be 0 or more, not -1"},
		{"the disk check can be turned off", "--node-name=n --min-free-disk=0", ""},
		{"all that is wrong", "--node-name=n --registry-config-path= -v -1", "--registry-config-path must be an absolute path, or several with : between them, not \"\": containerd would look elsewhere\n--verbosity must be 0 or more, not -1"},
		{"an unknown flag", "--nonsense", "unknown flag: --nonsense"},
		{"a word", "serve", `unexpected argument "serve": there are only flags`},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			_, err := parse(strings.Fields(tt.line))
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestPercentageRejects(t *testing.T) {
	for _, in := range []string{"", "x", "-1", "100", "5%%", "5 percent", "0.15x"} {
		if _, err := parse([]string{"--node-name=n", "--min-free-disk=" + in}); err == nil || !strings.Contains(err.Error(), "is not a percentage") {
			t.Errorf("--min-free-disk=%q: %v", in, err)
		}
	}
}
