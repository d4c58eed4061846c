// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/logging"
)

func TestDefaults(t *testing.T) {
	options, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plan.DefaultLimits(), options.Limits()); diff != "" {
		t.Errorf("the limits differ from the plan's own: %s", diff)
	}
	if !options.LeaderElect || options.MetricsBindAddress != ":8080" || options.HealthProbeBindAddress != ":8081" ||
		options.Log != (logging.Options{Format: logging.FormatJSON}) {
		t.Errorf("got %+v", options)
	}
}

func TestFlags(t *testing.T) {
	options, err := parse(strings.Fields("--upstream-pullers=2 --fanout=3 --max-concurrent-pulls=40 --seed-timeout=1m30s --agent-timeout=20s " +
		"--mirror-fallback=Never --node-local-repositories=docker.io/library/a,b.example.com/** --follow-seed=false --leader-elect=false --leader-elect-namespace=other --metrics-bind-address=0 " +
		"--health-probe-bind-address=127.0.0.1:1 --kubeconfig=/some/file --log-format=text -v 2"))
	if err != nil {
		t.Fatal(err)
	}
	wantLimits := plan.Limits{
		UpstreamPullers: 2, Fanout: 3, MaxConcurrentPulls: 40, SeedTimeout: 90 * time.Second, AgentTimeout: 20 * time.Second,
		MirrorFallback: plan.FallbackNever, FollowSeed: false,
	}
	if diff := cmp.Diff(wantLimits, options.Limits()); diff != "" {
		t.Error(diff)
	}
	if want := []string{"docker.io/library/a", "b.example.com/**"}; !slices.Equal(options.NodeLocalRepositories, want) {
		t.Errorf("node-local repositories %q, want %q", options.NodeLocalRepositories, want)
	}
	if options.LeaderElect || options.LeaderElectNamespace != "other" || options.MetricsBindAddress != "0" ||
		options.HealthProbeBindAddress != "127.0.0.1:1" || options.Kubeconfig != "/some/file" ||
		options.Log != (logging.Options{Format: logging.FormatText, Verbosity: 2}) {
		t.Errorf("got %+v", options)
	}
}

func TestVersionNeedsNoOtherFlag(t *testing.T) {
	if options, err := parse([]string{"--version", "--fanout=0"}); err != nil || !options.Version {
		t.Errorf("got %+v, %v", options, err)
	}
}

func TestWrongOptionsAreRejectedWithWhatToWrite(t *testing.T) {
	for line, want := range map[string]string{
		"--upstream-pullers=0":          "--upstream-pullers must be 1 or more, not 0",
		"--fanout=0":                    "--fanout must be 1 or more, not 0",
		"--max-concurrent-pulls=-1":     "--max-concurrent-pulls must be 0 (no limit) or more, not -1",
		"--seed-timeout=9s":             "--seed-timeout must be 10s or more, such as 2m, not 9s",
		"--agent-timeout=-1s":           "--agent-timeout must be more than 0, such as 1m, not -1s",
		"--mirror-fallback=upstream":    `--mirror-fallback must be Upstream or Never, not "upstream"`,
		"--node-local-repositories=app": `--node-local-repositories: "app" is ambiguous: name the registry, such as "docker.io/library/app"`,
		"--certificate-secret=tls":      `--certificate-secret must be NAMESPACE/NAME, not "tls"`,
		"--self-managed-certificate":    "--self-managed-certificate needs --certificate-secret",
		"--agent-daemonset=agents":      `--agent-daemonset must be NAMESPACE/NAME, not "agents"`,
		"--log-format=xml":              `--log-format must be json or text, not "xml"`,
		"--verbosity=-1":                "--verbosity must be 0 or more, not -1",
		"--fanout=0 -v -1":              "--fanout must be 1 or more, not 0\n--verbosity must be 0 or more, not -1",
		"--nonsense":                    "unknown flag: --nonsense",
		"serve":                         `unexpected argument "serve": there are only flags`,
	} {
		_, err := parse(strings.Fields(line))
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", line, err, want)
		}
	}
}
