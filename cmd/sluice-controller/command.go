// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/config/crd"
	"github.com/sluice-dev/sluice/controllers/installation"
)

// settle is longer than a controller takes to end, the wait before it included.
const settle = 10 * time.Second

// commands are what the hooks of the chart run in place of the controller.
var commands = map[string]func(context.Context, client.Client, commandOptions) error{
	"apply-crds": func(ctx context.Context, c client.Client, _ commandOptions) error {
		return installation.ApplyCRDs(ctx, c, crd.Files)
	},
	"await-webhooks": func(ctx context.Context, c client.Client, o commandOptions) error {
		return installation.AwaitWebhooks(ctx, c, o.namespace, time.Second)
	},
	"uninstall": func(ctx context.Context, c client.Client, o commandOptions) error {
		uninstaller := &installation.Uninstaller{
			Client:     c,
			Controller: client.ObjectKey{Namespace: o.namespace, Name: "sluice-controller"},
			Settle:     settle,
			Interval:   time.Second,
		}
		return uninstaller.Run(ctx)
	},
}

type commandOptions struct {
	kubeconfig string
	namespace  string
	timeout    time.Duration
}

// runCommand runs the command that the first argument names.
func runCommand(ctx context.Context, args []string) error {
	var o commandOptions
	flags := pflag.NewFlagSet("sluice-controller "+args[0], pflag.ContinueOnError)
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "file that says how to reach the API server (default: as for the controller)")
	flags.StringVar(&o.namespace, "namespace", "sluice-system", "namespace that Sluice is installed in")
	flags.DurationVar(&o.timeout, "timeout", 4*time.Minute, "how long to try")
	if err := flags.Parse(args[1:]); errors.Is(err, pflag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	config, err := restConfig(o.kubeconfig)
	if err != nil {
		return fmt.Errorf("load the client configuration: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("register the API kinds: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	ctx = logr.NewContext(ctx, logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil)))
	return commands[args[0]](ctx, c, o)
}
