// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command sluice-agent runs on each node, and brings it the images that the node's
// NodeImageSet names.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/cmd/restconfig"
	"github.com/sluice-dev/sluice/internal/objectkey"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/nodeagent/credentialprovider"
	"github.com/sluice-dev/sluice/nodeagent/credentials"
)

// version is stamped by the linker.
var version = "v0.0.0-dev"

func main() {
	options, err := parse(os.Args[1:])
	if err == nil && options.Check {
		options, err = parse(slices.Concat(agentArguments(firstProcess), os.Args[1:]))
	}
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "sluice-agent:", err)
		os.Exit(2)
	case options.Version:
		fmt.Println("sluice-agent", version)
		return
	}
	logger := options.Log.Logger(os.Stderr)
	ctrl.SetLogger(logger) // of controller-runtime
	klog.SetLogger(logger) // of client-go
	ctx := ctrl.SetupSignalHandler()
	if options.Check {
		err = check(ctx, options, os.Stdout)
	} else {
		err = run(ctx, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sluice-agent:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, options Options) error {
	config, err := restconfig.Load(options.Kubeconfig, userAgent())
	if err != nil {
		return err
	}
	mgr, err := newManager(config, options)
	if err != nil {
		return err
	}
	containers, err := containerd.New(runtimeOptions(options))
	if err != nil {
		return err
	}
	defer func() { _ = containers.Close() }()
	agent, err := addAgent(mgr, containers, options)
	if err != nil {
		return err
	}
	if err := addProbes(mgr, agent); err != nil {
		return fmt.Errorf("add health checks: %w", err)
	}
	ctrl.Log.Info("Started sluice-agent", "version", version, "node", options.NodeName)
	return mgr.Start(ctx)
}

func userAgent() string { return "sluice-agent/" + version }

func runtimeOptions(options Options) containerd.Options {
	return containerd.Options{
		Address:             options.ContainerdAddress,
		Namespace:           options.ContainerdNamespace,
		RegistryConfigPath:  options.RegistryConfigPath,
		ScratchPath:         options.ScratchPath,
		UpstreamHosts:       options.UpstreamHosts,
		MirrorRedirectHosts: options.MirrorRedirectHosts,
		MinFreeDisk:         options.MinFreeDisk.share(),
		KubeletConfig:       options.KubeletConfig,
		NoProgressTimeout:   options.NoProgressTimeout,
		MirrorStartTimeout:  mirrorStartTimeout,
		UserAgent:           userAgent(),
		Log:                 ctrl.Log.WithName("containerd"),
	}
}

// mirrorStartTimeout is longer than Spegel's Pod takes to start on a node that has just joined.
const mirrorStartTimeout = time.Minute

func newManager(config *rest.Config, options Options) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register the API kinds: %w", err)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Cache:                  nodeagent.CacheOptions(options.NodeName),
		HealthProbeBindAddress: options.HealthProbeBindAddress,
		Metrics:                metricsserver.Options{BindAddress: options.MetricsBindAddress},
	})
	if err != nil {
		return nil, fmt.Errorf("set up the manager: %w", err)
	}
	return mgr, nil
}

// addAgent adds the agent to the manager, and the reconciler that gives it the node's NodeImageSet.
func addAgent(mgr ctrl.Manager, containers nodeagent.Runtime, options Options) (*nodeagent.Agent, error) {
	agentMetrics, err := nodeagent.NewMetrics(metrics.Registry)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	secrets, err := newCredentials(mgr, options.Credentials)
	if err != nil {
		return nil, err
	}
	var nodeCredentials nodeagent.NodeCredentials
	if options.CredentialProvider.Enabled() {
		nodeCredentials, err = credentialprovider.New(options.CredentialProvider, ctrl.Log.WithName("credentialprovider"))
		if err != nil {
			return nil, err
		}
	}
	agent := nodeagent.New(nodeagent.Options{
		Runtime:           containers,
		Status:            nodeagent.NewStatusWriter(mgr.GetClient(), options.NodeName),
		Credentials:       secrets,
		NodeCredentials:   nodeCredentials,
		MaxParallelPulls:  options.MaxParallelPulls,
		NoProgressTimeout: options.NoProgressTimeout,
		VerifyInterval:    options.VerifyInterval,
		Log:               ctrl.Log.WithName("agent"),
		Metrics:           agentMetrics,
	})
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { agent.Run(ctx); return nil })); err != nil {
		return nil, fmt.Errorf("add the agent: %w", err)
	}
	reconciler := &nodeagent.Reconciler{Client: mgr.GetClient(), Agent: agent, NodeName: options.NodeName}
	if err := reconciler.SetupWithManager(mgr); err != nil {
		return nil, fmt.Errorf("set up the reconciler: %w", err)
	}
	return agent, nil
}

// newCredentials returns the client of the credential endpoint; nil if there is none.
func newCredentials(mgr ctrl.Manager, options credentials.Options) (nodeagent.Credentials, error) {
	if options.URL == "" {
		return nil, nil
	}
	if options.CAConfigMap == "" {
		return credentials.New(options, nil), nil
	}
	configMap, err := objectkey.Parse(options.CAConfigMap)
	if err != nil {
		return nil, err
	}
	return credentials.New(options, nodeagent.CAReader(mgr.GetAPIReader(), configMap)), nil
}

// addProbes adds the health checks. The agent is alive as long as the process answers.
func addProbes(mgr ctrl.Manager, agent *nodeagent.Agent) error {
	err := mgr.AddHealthzCheck("ping", healthz.Ping)
	for name, check := range readiness(agent) {
		err = errors.Join(err, mgr.AddReadyzCheck(name, check))
	}
	return err
}

// readiness returns a check for each thing that the agent needs in order to work: the node's spec,
// and a containerd that answers. A restart of the agent would bring neither, so these are not checks
// of whether it is alive.
func readiness(agent *nodeagent.Agent) map[string]healthz.Checker {
	return map[string]healthz.Checker{
		"synced": func(*http.Request) error {
			if !agent.Synced() {
				return errors.New("the node's NodeImageSet is not known yet")
			}
			return nil
		},
		"containerd": func(*http.Request) error {
			if !agent.Connected() {
				return errors.New("containerd does not answer")
			}
			return nil
		},
	}
}
