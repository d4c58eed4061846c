// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command sluice-controller plans which node of a cluster pulls which image, reports how far
// ImagePrefetches are, and holds rollouts until their images are on the nodes.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/cmd/restconfig"
	"github.com/sluice-dev/sluice/controllers/certificate"
	"github.com/sluice-dev/sluice/controllers/credentials"
	"github.com/sluice-dev/sluice/controllers/distribution"
	"github.com/sluice-dev/sluice/controllers/gate"
	"github.com/sluice-dev/sluice/internal/policy"
	"github.com/sluice-dev/sluice/webhook"
)

// version is stamped by the linker.
var version = "v0.0.0-dev"

// A leader that was killed is replaced after leaseDuration. One that stops in order gives the lease
// back, and is replaced within retryPeriod.
const (
	leaseDuration = 8 * time.Second
	renewDeadline = 5 * time.Second
	retryPeriod   = time.Second
)

func main() {
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		if err := runCommand(ctrl.SetupSignalHandler(), os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "sluice-controller %s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	options, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "sluice-controller:", err)
		os.Exit(2)
	case options.Version:
		fmt.Println("sluice-controller", version)
		return
	}
	logger := options.Log.Logger(os.Stderr)
	ctrl.SetLogger(logger) // of controller-runtime
	klog.SetLogger(logger) // of client-go
	if err := run(ctrl.SetupSignalHandler(), options); err != nil {
		fmt.Fprintln(os.Stderr, "sluice-controller:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, options Options) error {
	config, err := restconfig.Load(options.Kubeconfig, "sluice-controller/"+version)
	if err != nil {
		return err
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	keeper, err := newKeeper(config, scheme, options)
	if err != nil {
		return fmt.Errorf("set up the serving certificate: %w", err)
	}
	mgr, err := newManager(config, scheme, keeper, options)
	if err != nil {
		return err
	}
	if keeper != nil {
		if err := mgr.Add(keeper); err != nil {
			return fmt.Errorf("add the serving certificate: %w", err)
		}
	}
	if err := addDistribution(mgr, options); err != nil {
		return err
	}
	cluster, err := readCluster(ctx, mgr, options)
	if err != nil {
		return err
	}
	if err := addGate(mgr, cluster); err != nil {
		return err
	}
	if options.Webhook.BindAddress != "" {
		if err := webhook.SetupWithManager(ctx, mgr, options.Webhook, cluster, metrics.Registry); err != nil {
			return fmt.Errorf("set up the webhooks: %w", err)
		}
	}
	if options.Credentials.BindAddress != "" {
		if _, err := credentials.SetupWithManager(mgr, options.Credentials, keeper.GetCertificate); err != nil {
			return fmt.Errorf("set up the credential endpoint: %w", err)
		}
	}
	if err := addProbes(mgr, keeper, options); err != nil {
		return fmt.Errorf("add health checks: %w", err)
	}
	ctrl.Log.Info("Started sluice-controller", "version", version)
	return mgr.Start(ctx)
}

func newManager(config *rest.Config, scheme *runtime.Scheme, keeper *certificate.Keeper, options Options) (ctrl.Manager, error) {
	cacheOptions := distribution.CacheOptions()
	if err := gate.AddToCache(&cacheOptions, options.agents()); err != nil {
		return nil, fmt.Errorf("set up the cache: %w", err)
	}
	webhookServer, err := webhook.NewServer(options.Webhook, keeper.GetCertificate)
	if err != nil {
		return nil, fmt.Errorf("set up the webhook server: %w", err)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         cacheOptions,
		WebhookServer:                 webhookServer,
		LeaderElection:                options.LeaderElect,
		LeaderElectionID:              "sluice-controller",
		LeaderElectionNamespace:       options.LeaderElectNamespace,
		LeaderElectionReleaseOnCancel: true, // the process ends when the manager does
		LeaseDuration:                 ptr.To(leaseDuration),
		RenewDeadline:                 ptr.To(renewDeadline),
		RetryPeriod:                   ptr.To(retryPeriod),
		HealthProbeBindAddress:        options.HealthProbeBindAddress,
		Metrics:                       metricsserver.Options{BindAddress: options.MetricsBindAddress},
	})
	if err != nil {
		return nil, fmt.Errorf("set up the manager: %w", err)
	}
	return mgr, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register the API kinds: %w", err)
	}
	return scheme, nil
}

// addDistribution adds the distribution controller to the manager.
func addDistribution(mgr ctrl.Manager, options Options) error {
	distributionMetrics, err := distribution.NewMetrics(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register the metrics of the distribution controller: %w", err)
	}
	nodeLocal, err := policy.ParseRepositories(options.NodeLocalRepositories)
	if err != nil {
		return fmt.Errorf("read --node-local-repositories: %w", err)
	}
	reconciler := &distribution.Reconciler{
		Client:        mgr.GetClient(),
		APIReader:     mgr.GetAPIReader(),
		Recorder:      mgr.GetEventRecorder("sluice-controller"),
		Clock:         clock.RealClock{},
		Limits:        options.Limits(),
		PullSecrets:   options.Credentials.BindAddress != "",
		NodeLocal:     nodeLocal,
		DefaultPolicy: options.Webhook.DefaultPolicy,
		Agents:        options.agents(),
		Metrics:       distributionMetrics,
	}
	if err := reconciler.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("set up the distribution controller: %w", err)
	}
	return nil
}

// readCluster sets up what the gate controller and the webhooks go by.
func readCluster(ctx context.Context, mgr ctrl.Manager, options Options) (*gate.ClusterReader, error) {
	nodes := &gate.Nodes{Clock: clock.RealClock{}, AgentTimeout: options.AgentTimeout, Agents: options.agents()}
	if err := nodes.Watch(ctx, mgr.GetCache()); err != nil {
		return nil, fmt.Errorf("follow the nodes: %w", err)
	}
	if err := gate.AddIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return nil, err
	}
	return &gate.ClusterReader{Nodes: nodes, Prefetches: mgr.GetCache()}, nil
}

// addGate adds the gate controller to the manager, even without webhooks: Deployments that they
// held before are then still released.
func addGate(mgr ctrl.Manager, cluster *gate.ClusterReader) error {
	gateMetrics, err := gate.NewMetrics(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register the metrics of the gate controller: %w", err)
	}
	reconciler := &gate.Reconciler{
		Client:    mgr.GetClient(),
		APIReader: mgr.GetAPIReader(),
		Cluster:   cluster,
		Recorder:  mgr.GetEventRecorder("sluice-gate"),
		Clock:     clock.RealClock{},
		Metrics:   gateMetrics,
	}
	if err := reconciler.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("set up the gate controller: %w", err)
	}
	return nil
}

// addProbes adds the health checks. The controller is alive as long as the process answers, and
// ready when its cache is synced, it has a certificate and its webhooks listen.
func addProbes(mgr ctrl.Manager, keeper *certificate.Keeper, options Options) error {
	err := mgr.AddHealthzCheck("ping", healthz.Ping)
	err = errors.Join(err, mgr.AddReadyzCheck("cache", func(request *http.Request) error {
		// A synced cache answers at once, so this does not wait.
		ctx, cancel := context.WithTimeout(request.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the cache is not synced with the API server")
		}
		return nil
	}))
	if keeper != nil {
		err = errors.Join(err, mgr.AddReadyzCheck("certificate", keeper.Ready))
	}
	if options.Webhook.BindAddress != "" {
		err = errors.Join(err, mgr.AddReadyzCheck("webhooks", mgr.GetWebhookServer().StartedChecker()))
	}
	return err
}
