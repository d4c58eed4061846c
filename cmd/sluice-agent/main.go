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

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/nodeagent/credentials"
)

// version is stamped by the linker: -X main.version=v0.1.0.
var version = "dev"

func main() {
	opts := defaultOptions()
	opts.addFlags(pflag.CommandLine)
	pflag.Parse()
	if err := opts.validate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := run(ctrl.SetupSignalHandler(), opts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	log := zap.New(zap.Level(zapcore.Level(-opts.LogLevel)))
	ctrl.SetLogger(log)
	log.Info("Started", "version", version, "node", opts.NodeName)

	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("make scheme: %w", err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", opts.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configure API client: %w", err)
	}
	config.UserAgent = "sluice-agent/" + version
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Cache:                  nodeagent.CacheOptions(opts.NodeName),
		HealthProbeBindAddress: opts.HealthProbeBindAddress,
		Metrics:                metricsserver.Options{BindAddress: opts.MetricsBindAddress},
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}

	containers, err := containerd.New(containerd.Options{
		Address:            opts.ContainerdAddress,
		Namespace:          opts.ContainerdNamespace,
		RegistryConfigPath: opts.RegistryConfigPath,
		Snapshotter:        opts.Snapshotter,
		MinFreeDisk:        opts.MinFreeDisk.share(),
		NoProgressTimeout:  opts.NoProgressTimeout,
		UserAgent:          config.UserAgent,
		Log:                log.WithName("containerd"),
	})
	if err != nil {
		return err
	}
	defer func() { _ = containers.Close() }()

	var secrets nodeagent.Credentials
	if opts.Credentials.URL != "" {
		secrets = credentials.New(opts.Credentials)
	}
	agent := nodeagent.New(nodeagent.Options{
		Runtime:           containers,
		Status:            nodeagent.NewStatusWriter(mgr.GetClient(), opts.NodeName),
		Credentials:       secrets,
		MaxParallelPulls:  opts.MaxParallelPulls,
		NoProgressTimeout: opts.NoProgressTimeout,
		VerifyInterval:    opts.VerifyInterval,
		Log:               log.WithName("agent"),
		Metrics:           nodeagent.NewMetrics(metrics.Registry),
	})
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { agent.Run(ctx); return nil })); err != nil {
		return fmt.Errorf("add agent: %w", err)
	}
	reconciler := &nodeagent.Reconciler{Client: mgr.GetClient(), Agent: agent, NodeName: opts.NodeName}
	if err := reconciler.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("set up reconciler: %w", err)
	}
	if err := addProbes(mgr, agent); err != nil {
		return fmt.Errorf("add probes: %w", err)
	}
	return mgr.Start(ctx)
}

// addProbes: alive as long as the process answers.
func addProbes(mgr ctrl.Manager, agent *nodeagent.Agent) error {
	err := mgr.AddHealthzCheck("alive", healthz.Ping)
	for name, check := range readiness(agent) {
		err = errors.Join(err, mgr.AddReadyzCheck(name, check))
	}
	return err
}

// readiness: the node's spec is known and containerd answers. Restarting the agent would
// mend neither.
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
