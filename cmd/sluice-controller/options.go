// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/cmd/restconfig"
	"github.com/sluice-dev/sluice/controllers/credentials"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/duration"
	"github.com/sluice-dev/sluice/internal/logging"
	"github.com/sluice-dev/sluice/internal/objectkey"
	"github.com/sluice-dev/sluice/internal/policy"
	"github.com/sluice-dev/sluice/webhook"
)

// minSeedTimeout is longer than an agent takes to report that a pull makes progress: it
// writes 1 s, 3 s and 7 s after the pull began.
const minSeedTimeout = 10 * time.Second

// Options are the settings of the controller.
type Options struct {
	Kubeconfig             string
	LeaderElect            bool
	LeaderElectNamespace   string
	MetricsBindAddress     string
	HealthProbeBindAddress string

	UpstreamPullers    int
	Fanout             int
	MaxConcurrentPulls int
	SeedTimeout        time.Duration
	AgentTimeout       time.Duration
	MirrorFallback     string
	AgentDaemonSet     string
	FollowSeed         bool

	NodeLocalRepositories []string

	CertificateSecret      string
	SelfManagedCertificate bool

	Credentials credentials.Options
	Webhook     webhook.Options

	Log     logging.Options
	Version bool
}

// parse parses the command line. Its error says what to write instead.
func parse(args []string) (Options, error) {
	var o Options
	flags := pflag.NewFlagSet("sluice-controller", pflag.ContinueOnError)
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
	limits := plan.DefaultLimits()
	flags.IntVar(&o.UpstreamPullers, "upstream-pullers", limits.UpstreamPullers,
		"how many nodes may pull one image, per platform, from the upstream registry at a time")
	flags.IntVar(&o.Fanout, "fanout", limits.Fanout,
		"how many nodes may pull an image from the mirror at a time, for each node that has it; the seed counts while it is followed, "+
			"and those who pull count by the part that they have, together up to three times as much")
	flags.IntVar(&o.MaxConcurrentPulls, "max-concurrent-pulls", limits.MaxConcurrentPulls,
		"how many pulls, of all images on all nodes together, may be under way, those that wait for another try included; "+
			"a node that has failed for good, shows no progress or does not answer is not counted; 0 is no limit")
	flags.DurationVar(&o.SeedTimeout, "seed-timeout", limits.SeedTimeout,
		"how long a node that pulls from the upstream registry may show no progress before another takes over, ten times as long while it unpacks, "+
			"and three times longer while it pulls another image of the same ImagePrefetch; "+
			"10s or more, and less than 1m replaces nodes that are well, because agents report progress up to 30s apart")
	flags.DurationVar(&o.AgentTimeout, "agent-timeout", limits.AgentTimeout,
		"how late an agent's write may be before its node counts as failed: it answers each new spec of its NodeImageSet, "+
			"and writes at least every 30s while it has images to bring")
	flags.StringVar(&o.AgentDaemonSet, "agent-daemonset", "",
		"NAMESPACE/NAME of the node agents' DaemonSet, whose placement says on which nodes agents are meant to run: nobody waits for the others; "+
			"empty means every node")
	flags.StringVar(&o.MirrorFallback, "mirror-fallback", string(limits.MirrorFallback),
		"what a node does that the mirror could not serve: Upstream (it waits for its turn at the registry) or Never")
	flags.BoolVar(&o.FollowSeed, "follow-seed", limits.FollowSeed,
		"let the first nodes pull from the mirror while the seed is still pulling")
	flags.StringSliceVar(&o.NodeLocalRepositories, "node-local-repositories", nil,
		"repositories whose images are imported into the nodes and are in no registry, as patterns such as docker.io/library/app or local.example.com/**: "+
			"a tag of them is what the nodes have under that name, if all of them have the same")
	flags.StringVar(&o.Credentials.BindAddress, "credentials-bind-address", "",
		"address of the HTTPS endpoint that gives node agents the credentials in imagePullSecrets, such as :9444; empty serves none")
	flags.StringVar(&o.Credentials.AgentServiceAccount, "agent-service-account", "sluice-system/sluice-agent",
		"NAMESPACE/NAME of the node agents' service account, which alone gets credentials")
	flags.StringVar(&o.Credentials.Audience, "credentials-audience", credentialapi.Audience,
		"audience that an agent's token must be issued for")
	flags.StringVar(&o.Webhook.BindAddress, "webhook-bind-address", "",
		"address of the HTTPS endpoint of the admission webhooks, such as :9443; empty serves none, and nothing is held")
	flags.StringVar((*string)(&o.Webhook.DefaultPolicy), "default-policy", string(policy.DefaultAllow),
		"what a namespace that no PrefetchPolicy selects may prefetch: Allow (everything) or Deny (nothing)")
	flags.StringVar(&o.CertificateSecret, "certificate-secret", "",
		"NAMESPACE/NAME of the secret with the certificate for HTTPS (tls.crt, tls.key) and its CA (ca.crt), which is read again when it changes; "+
			"the CA is published in the ConfigMap "+installation.CAConfigMap+" of that namespace")
	flags.BoolVar(&o.SelfManagedCertificate, "self-managed-certificate", false,
		"make and renew what is in --certificate-secret, and put the CA into the webhook configurations; without it, others do")
	flags.BoolVar(&o.LeaderElect, "leader-elect", true,
		"act only while holding the lease, so that several replicas can run")
	flags.StringVar(&o.LeaderElectNamespace, "leader-elect-namespace", "",
		"namespace of the lease (default: the one that the controller runs in)")
	flags.StringVar(&o.MetricsBindAddress, "metrics-bind-address", ":8080",
		"address of the metrics; 0 serves none")
	flags.StringVar(&o.HealthProbeBindAddress, "health-probe-bind-address", ":8081",
		"address of /healthz and /readyz; 0 serves none")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", restconfig.Usage)
	o.Log.AddFlags(flags)
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
	reject(o.UpstreamPullers < 1, "--upstream-pullers must be 1 or more, not %d", o.UpstreamPullers)
	reject(o.Fanout < 1, "--fanout must be 1 or more, not %d", o.Fanout)
	reject(o.MaxConcurrentPulls < 0, "--max-concurrent-pulls must be 0 (no limit) or more, not %d", o.MaxConcurrentPulls)
	reject(o.SeedTimeout < minSeedTimeout, "--seed-timeout must be %s or more, such as 2m, not %s",
		duration.Format(minSeedTimeout), duration.Format(o.SeedTimeout))
	reject(o.AgentTimeout <= 0, "--agent-timeout must be more than 0, such as 1m, not %s", duration.Format(o.AgentTimeout))
	if o.AgentDaemonSet != "" {
		_, err := objectkey.Parse(o.AgentDaemonSet)
		reject(err != nil, "--agent-daemonset %w", err)
	}
	fallback := plan.MirrorFallback(o.MirrorFallback)
	reject(fallback != plan.FallbackUpstream && fallback != plan.FallbackNever,
		"--mirror-fallback must be %s or %s, not %q", plan.FallbackUpstream, plan.FallbackNever, o.MirrorFallback)
	_, err := policy.ParseRepositories(o.NodeLocalRepositories)
	reject(err != nil, "--node-local-repositories: %w", err)
	problems = append(problems, o.Credentials.Validate(), o.Webhook.Validate())
	if o.CertificateSecret != "" {
		_, err := objectkey.Parse(o.CertificateSecret)
		reject(err != nil, "--certificate-secret %w", err)
	}
	reject(o.Webhook.BindAddress != "" && o.CertificateSecret == "", "--webhook-bind-address needs --certificate-secret: webhooks are served over HTTPS only")
	reject(o.Credentials.BindAddress != "" && o.CertificateSecret == "", "--credentials-bind-address needs --certificate-secret: credentials are served over HTTPS only")
	reject(o.SelfManagedCertificate && o.CertificateSecret == "", "--self-managed-certificate needs --certificate-secret")
	return errors.Join(append(problems, o.Log.Validate())...)
}

// Limits are those options that bound the plan.
func (o Options) Limits() plan.Limits {
	return plan.Limits{
		UpstreamPullers:    o.UpstreamPullers,
		Fanout:             o.Fanout,
		MaxConcurrentPulls: o.MaxConcurrentPulls,
		SeedTimeout:        o.SeedTimeout,
		AgentTimeout:       o.AgentTimeout,
		MirrorFallback:     plan.MirrorFallback(o.MirrorFallback),
		FollowSeed:         o.FollowSeed,
	}
}

// agents is the key of the agents' DaemonSet; empty if none is named, or the name is malformed.
func (o Options) agents() client.ObjectKey {
	key, _ := objectkey.Parse(o.AgentDaemonSet)
	return key
}
