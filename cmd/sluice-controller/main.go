// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command sluice-controller plans which node of a cluster pulls which image, and
// reports to the ImagePrefetches how far it is.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/credentials"
	"github.com/sluice-dev/sluice/controllers/distribution"
	"github.com/sluice-dev/sluice/controllers/gate"
	"github.com/sluice-dev/sluice/webhook"
)

// version is stamped by the linker.
var version = "v0.0.0-dev"

// A leader that is gone without a word is replaced after leaseDuration. One that
// leaves in an orderly way gives the lease back, and is replaced within retryPeriod.
const (
	leaseDuration = 8 * time.Second
	renewDeadline = 5 * time.Second
	retryPeriod   = time.Second
)

func main() {
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		if err := runCommand(ctrl.SetupSignalHandler(), os.Args[1:]); err != nil {
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
	logger := logr.FromSlogHandler(options.logHandler(os.Stderr))
	ctrl.SetLogger(logger) // of controller-runtime
	klog.SetLogger(logger) // of client-go
	if err := run(ctrl.SetupSignalHandler(), options); err != nil {
		fmt.Fprintln(os.Stderr, "sluice-controller:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, options Options) error {
	config, err := restConfig(options.Kubeconfig)
	if err != nil {
		return fmt.Errorf("load the client configuration: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("register the API kinds: %w", err)
	}
	cacheOptions := distribution.CacheOptions()
	if err := gate.AddToCache(&cacheOptions); err != nil {
		return fmt.Errorf("set up the cache: %w", err)
	}
	webhookServer, err := webhook.NewServer(options.Webhook)
	if err != nil {
		return fmt.Errorf("set up the webhook server: %w", err)
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
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
		return fmt.Errorf("set up the manager: %w", err)
	}
	if options.SelfManagedCertificate != "" {
		if err := keepCertificate(ctx, manager, options); err != nil {
			return fmt.Errorf("keep the serving certificate: %w", err)
		}
	}
	figures, err := distribution.NewMetrics(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	reconciler := &distribution.Reconciler{
		Client:        manager.GetClient(),
		APIReader:     manager.GetAPIReader(),
		Recorder:      manager.GetEventRecorder("sluice-controller"),
		Clock:         clock.RealClock{},
		Limits:        options.Limits(),
		PullSecrets:   options.Credentials.BindAddress != "",
		DefaultPolicy: options.Webhook.DefaultPolicy,
		Metrics:       figures,
	}
	if err := reconciler.SetupWithManager(manager); err != nil {
		return fmt.Errorf("set up the distribution controller: %w", err)
	}
	if err := setupGate(ctx, manager, options.Webhook); err != nil {
		return err
	}
	if options.Credentials.BindAddress != "" {
		if _, err := credentials.SetupWithManager(manager, options.Credentials); err != nil {
			return fmt.Errorf("set up the credential endpoint: %w", err)
		}
	}
	ready := func(request *http.Request) error {
		// Not to wait, but to ask: the cache answers at once when it is synced.
		ctx, cancel := context.WithTimeout(request.Context(), time.Second)
		defer cancel()
		if !manager.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the cache is not synced with the API server")
		}
		return nil
	}
	if err := errors.Join(manager.AddHealthzCheck("ping", healthz.Ping), manager.AddReadyzCheck("cache", ready)); err != nil {
		return fmt.Errorf("add health checks: %w", err)
	}
	ctrl.Log.Info("Started sluice-controller", "version", version)
	return manager.Start(ctx)
}

// setupGate has held Deployments released, and if there are to be webhooks, held.
func setupGate(ctx context.Context, manager ctrl.Manager, options webhook.Options) error {
	figures, err := gate.NewMetrics(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register the gate's metrics: %w", err)
	}
	reconciler := &gate.Reconciler{
		Client:   manager.GetClient(),
		APIReader:     manager.GetAPIReader(),
		Recorder: manager.GetEventRecorder("sluice-gate"),
		Clock:    clock.RealClock{},
		Metrics:  figures,
	}
	if err := reconciler.SetupWithManager(ctx, manager); err != nil {
		return fmt.Errorf("set up the gate controller: %w", err)
	}
	if options.BindAddress == "" {
		return nil
	}
	if err := webhook.SetupWithManager(ctx, manager, options, metrics.Registry); err != nil {
		return fmt.Errorf("set up the webhooks: %w", err)
	}
	return manager.AddReadyzCheck("webhooks", manager.GetWebhookServer().StartedChecker())
}

// restConfig finds the API server: by the file that is named, else by $KUBECONFIG or
// ~/.kube/config, else as a Pod does. API Priority and Fairness limits the rate of
// requests, so that the client need not.
func restConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	config.UserAgent = "sluice-controller/" + version
	return config, nil
}

// logHandler writes one line for each record.
func (o Options) logHandler(w *os.File) slog.Handler {
	// logr's V(n) is slog's level -n.
	options := &slog.HandlerOptions{Level: slog.Level(-o.Verbosity)}
	if o.LogFormat == formatText {
		return slog.NewTextHandler(w, options)
	}
	return slog.NewJSONHandler(w, options)
}
