// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/nodeagent/credentials"
)

// options are the agent's flags.
type options struct {
	NodeName   string
	Kubeconfig string

	ContainerdAddress   string
	ContainerdNamespace string
	RegistryConfigPath  string
	Snapshotter         string

	MaxParallelPulls  int
	NoProgressTimeout time.Duration
	VerifyInterval    time.Duration
	MinFreeDisk       percentage

	Credentials credentials.Options

	HealthProbeBindAddress string
	MetricsBindAddress     string
	LogLevel               int
}

func defaultOptions() options {
	return options{
		NodeName:               os.Getenv("NODE_NAME"),
		ContainerdAddress:      "/run/containerd/containerd.sock",
		ContainerdNamespace:    "k8s.io",
		RegistryConfigPath:     "/etc/containerd/certs.d",
		Snapshotter:            "overlayfs",
		MaxParallelPulls:       3,
		NoProgressTimeout:      time.Minute,
		VerifyInterval:         10 * time.Minute,
		MinFreeDisk:            15,
		HealthProbeBindAddress: ":8081",
		MetricsBindAddress:     ":8080",
	}
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.NodeName, "node-name", o.NodeName,
		"name of the node this agent runs on; by default that in the environment variable NODE_NAME")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig,
		"path of a kubeconfig; empty: the service account of the Pod")
	flags.StringVar(&o.ContainerdAddress, "containerd-address", o.ContainerdAddress,
		"path of containerd's socket")
	flags.StringVar(&o.ContainerdNamespace, "containerd-namespace", o.ContainerdNamespace,
		"containerd namespace that the kubelet's images are in")
	flags.StringVar(&o.RegistryConfigPath, "registry-config-path", o.RegistryConfigPath,
		"directory of the hosts.toml files, as in containerd's registry config_path; it must be mounted here under the path that containerd sees")
	flags.StringVar(&o.Snapshotter, "snapshotter", o.Snapshotter,
		"snapshotter that containerd's CRI plugin uses")
	flags.IntVar(&o.MaxParallelPulls, "max-parallel-pulls", o.MaxParallelPulls,
		"how many images are pulled at a time")
	flags.DurationVar(&o.NoProgressTimeout, "no-progress-timeout", o.NoProgressTimeout,
		"how long a pull may receive nothing before it is stopped and tried again")
	flags.DurationVar(&o.VerifyInterval, "verify-interval", o.VerifyInterval,
		"how often the presence of images is looked up without any event")
	flags.Var(&o.MinFreeDisk, "min-free-disk",
		"percentage of containerd's filesystem that pulls leave free; the kubelet begins to delete images at 15% (imagefs.available, image GC); 0 turns the check off")
	flags.StringVar(&o.Credentials.URL, "credentials-url", o.Credentials.URL,
		"https://HOST:PORT of the controller's credential endpoint; empty: every pull is anonymous")
	flags.StringVar(&o.Credentials.TokenFile, "credentials-token-file", o.Credentials.TokenFile,
		"path of a token of the agent's service account for the endpoint's audience; it is read for each request")
	flags.StringVar(&o.Credentials.CAFile, "credentials-ca-file", o.Credentials.CAFile,
		"path of the certificates that the endpoint's is checked against; it is read for each request; empty: those of the system")
	flags.StringVar(&o.HealthProbeBindAddress, "health-probe-bind-address", o.HealthProbeBindAddress,
		"address of /healthz and /readyz; 0 turns them off")
	flags.StringVar(&o.MetricsBindAddress, "metrics-bind-address", o.MetricsBindAddress,
		"address of /metrics; 0 turns it off")
	flags.IntVarP(&o.LogLevel, "v", "v", o.LogLevel,
		"log level: 0 changes of state, 1 decisions, 2 requests")
}

// validate names every flag that is wrong, and what it should be.
func (o *options) validate() error {
	var errs []error
	complain := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if o.NodeName == "" {
		complain("node-name", "required, or set NODE_NAME")
	}
	if !filepath.IsAbs(o.ContainerdAddress) {
		complain("containerd-address", "%q is not an absolute path", o.ContainerdAddress)
	}
	if o.ContainerdNamespace == "" {
		complain("containerd-namespace", "required")
	}
	if !filepath.IsAbs(o.RegistryConfigPath) {
		complain("registry-config-path", "%q is not an absolute path: containerd would look elsewhere", o.RegistryConfigPath)
	}
	if o.Snapshotter == "" {
		complain("snapshotter", "required")
	}
	if o.MaxParallelPulls < 1 {
		complain("max-parallel-pulls", "%d is less than 1", o.MaxParallelPulls)
	}
	if o.NoProgressTimeout < time.Second {
		complain("no-progress-timeout", "%v is less than 1s", o.NoProgressTimeout)
	}
	if o.VerifyInterval < time.Second {
		complain("verify-interval", "%v is less than 1s", o.VerifyInterval)
	}
	if err := o.Credentials.Validate(); err != nil {
		errs = append(errs, err)
	}
	if o.LogLevel < 0 {
		complain("v", "%d is less than 0", o.LogLevel)
	}
	return errors.Join(errs...)
}

// percentage is written "15%" or "15".
type percentage float64

func (p *percentage) String() string { return fmt.Sprintf("%g%%", float64(*p)) }
func (p *percentage) Type() string   { return "percentage" }

func (p *percentage) Set(s string) error {
	var value float64
	var rest string
	if n, _ := fmt.Sscanf(s, "%f%s", &value, &rest); n == 0 || rest != "" && rest != "%" || value < 0 || value >= 100 {
		return fmt.Errorf("%q is not a percentage from 0%% to 99%%", s)
	}
	*p = percentage(value)
	return nil
}

func (p percentage) share() float64 { return float64(p) / 100 }
