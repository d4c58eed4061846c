// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/cmd/restconfig"
	"github.com/sluice-dev/sluice/internal/duration"
	"github.com/sluice-dev/sluice/internal/logging"
	"github.com/sluice-dev/sluice/nodeagent/credentialprovider"
	"github.com/sluice-dev/sluice/nodeagent/credentials"
)

// minTimeout is less than any pull or check takes, so a smaller value is a mistake.
const minTimeout = time.Second

// Options are the settings of the agent.
type Options struct {
	NodeName               string
	Kubeconfig             string
	MetricsBindAddress     string
	HealthProbeBindAddress string

	ContainerdAddress   string
	ContainerdNamespace string
	RegistryConfigPath  string
	ScratchPath         string
	UpstreamHosts       []string
	MirrorRedirectHosts []string

	MaxParallelPulls  int
	NoProgressTimeout time.Duration
	VerifyInterval    time.Duration
	MinFreeDisk       percentage
	KubeletConfig     string

	Credentials        credentials.Options
	CredentialProvider credentialprovider.Options

	Log     logging.Options
	Check   bool
	Version bool
}

// parse parses the command line. Its error says what to write instead.
func parse(args []string) (Options, error) {
	var o Options
	flags := pflag.NewFlagSet("sluice-agent", pflag.ContinueOnError)
	flags.SortFlags = false
	o.addFlags(flags)
	if err := flags.Parse(args); err != nil {
		return Options{}, err
	}
	if flags.NArg() > 0 {
		return Options{}, fmt.Errorf("unexpected argument %q: there are only flags", flags.Arg(0))
	}
	if o.Version {
		return o, nil
	}
	return o, o.Validate()
}

func (o *Options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.NodeName, "node-name", os.Getenv("NODE_NAME"),
		"name of the node this agent runs on (default: $NODE_NAME)")
	flags.StringVar(&o.ContainerdAddress, "containerd-address", "/run/containerd/containerd.sock",
		"path of containerd's socket")
	flags.StringVar(&o.ContainerdNamespace, "containerd-namespace", "k8s.io",
		"containerd namespace that the kubelet's images are in")
	flags.StringVar(&o.RegistryConfigPath, "registry-config-path", "/etc/containerd/certs.d",
		"folders of the hosts.toml files, as in containerd's registry config_path, such as /etc/containerd/certs.d:/etc/docker/certs.d; "+
			"they must be mounted here under the paths that containerd sees")
	flags.StringVar(&o.ScratchPath, "scratch-path", "/run/sluice",
		"folder for hosts.toml files of the agent's own; it must be mounted here under the path that containerd sees")
	flags.StringSliceVar(&o.UpstreamHosts, "upstream-hosts", nil,
		"hosts in hosts.toml files, besides the registries themselves, whose answers count as the registry's, such as cache.example.com:5000")
	flags.IntVar(&o.MaxParallelPulls, "max-parallel-pulls", 3,
		"how many images are pulled at a time")
	flags.DurationVar(&o.NoProgressTimeout, "no-progress-timeout", time.Minute,
		"how long a pull may receive nothing before it is stopped and tried again")
	flags.DurationVar(&o.VerifyInterval, "verify-interval", 10*time.Minute,
		"how often the presence of images is looked up without any event")
	flags.StringSliceVar(&o.MirrorRedirectHosts, "mirror-redirect-hosts", nil,
		"hosts to which mirrors may send the agent, for their storage or their tokens, such as storage.example.com:9000")
	o.MinFreeDisk = 15
	flags.Var(&o.MinFreeDisk, "min-free-disk",
		"percentage of containerd's file systems that pulls leave free; the kubelet begins to delete images at 15% (imagefs.available, image GC); 0 turns the check off")
	flags.StringVar(&o.KubeletConfig, "kubelet-config", "",
		"the kubelet's file of the name --config; pulls leave free what it wants free of images' file systems, if that is more; empty reads none")
	flags.StringVar(&o.Credentials.URL, "credentials-url", "",
		"https://HOST:PORT of the controller's credential endpoint; empty pulls everything without credentials")
	flags.StringVar(&o.Credentials.TokenFile, "credentials-token-file", "",
		"file with a token of the agent's service account for the endpoint's audience, which is read for each request")
	flags.StringVar(&o.Credentials.CAConfigMap, "credentials-ca-configmap", "",
		"NAMESPACE/NAME of the ConfigMap with the certificates that the endpoint's is checked against (ca.crt), which is read for each request; empty: those of the system")
	flags.StringVar(&o.CredentialProvider.Config, "image-credential-provider-config", "",
		"the kubelet's file of this name, or folder of files, with the credential providers of the node; empty runs none")
	flags.StringVar(&o.CredentialProvider.BinDir, "image-credential-provider-bin-dir", "",
		"folder of the credential providers' plugins")
	flags.StringVar(&o.MetricsBindAddress, "metrics-bind-address", ":8080",
		"address of the metrics; 0 serves none")
	flags.StringVar(&o.HealthProbeBindAddress, "health-probe-bind-address", ":8081",
		"address of /healthz and /readyz; 0 serves none")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", restconfig.Usage)
	o.Log.AddFlags(flags)
	flags.BoolVar(&o.Check, "check", false,
		"look at what the agent needs on this node, print what is found, and exit with 1 if something keeps images away")
	flags.BoolVar(&o.Version, "version", false, "print the version and exit")
}

// Validate returns an error that names every flag that is wrong, and what it should be.
func (o Options) Validate() error {
	var problems []error
	reject := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	reject(o.NodeName == "" && !o.Check, "--node-name or NODE_NAME must be set")
	reject(!filepath.IsAbs(o.ContainerdAddress), "--containerd-address must be an absolute path, not %q", o.ContainerdAddress)
	reject(o.KubeletConfig != "" && !filepath.IsAbs(o.KubeletConfig), "--kubelet-config must be an absolute path, not %q", o.KubeletConfig)
	reject(o.ContainerdNamespace == "", "--containerd-namespace must be set, such as k8s.io")
	roots := filepath.SplitList(o.RegistryConfigPath)
	reject(len(roots) == 0 || slices.ContainsFunc(roots, func(root string) bool { return !filepath.IsAbs(root) }),
		"--registry-config-path must be an absolute path, or several with : between them, not %q: containerd would look elsewhere", o.RegistryConfigPath)
	reject(!filepath.IsAbs(o.ScratchPath),
		"--scratch-path must be an absolute path, not %q: containerd would look elsewhere", o.ScratchPath)
	for _, host := range o.UpstreamHosts {
		reject(strings.Contains(host, "/") || host == "", "--upstream-hosts takes hosts such as cache.example.com:5000, not %q", host)
	}
	for _, host := range o.MirrorRedirectHosts {
		reject(strings.Contains(host, "/") || host == "", "--mirror-redirect-hosts takes hosts such as storage.example.com:9000, not %q", host)
	}
	reject(o.MaxParallelPulls < 1, "--max-parallel-pulls must be 1 or more, not %d", o.MaxParallelPulls)
	reject(o.NoProgressTimeout < minTimeout, "--no-progress-timeout must be %s or more, such as 1m, not %s",
		duration.Format(minTimeout), duration.Format(o.NoProgressTimeout))
	reject(o.VerifyInterval < minTimeout, "--verify-interval must be %s or more, such as 10m, not %s",
		duration.Format(minTimeout), duration.Format(o.VerifyInterval))
	return errors.Join(append(problems, o.Credentials.Validate(), o.CredentialProvider.Validate(), o.Log.Validate())...)
}

// percentage is a flag such as "15%" or "15".
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
