// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/cmd/restconfig"
	"github.com/sluice-dev/sluice/config/crd"
	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/internal/logging"
)

// quietPeriod is longer than a controller takes to end, the wait before it included.
const quietPeriod = 10 * time.Second

// commands are run by the hooks of the chart, in place of the controller.
var commands = map[string]func(context.Context, client.Client, CommandOptions) error{
	"apply-crds": func(ctx context.Context, c client.Client, _ CommandOptions) error {
		return installation.ApplyCRDs(ctx, c, crd.Files)
	},
	"await-webhooks": func(ctx context.Context, c client.Client, o CommandOptions) error {
		return installation.AwaitWebhooks(ctx, c, o.Namespace, time.Second)
	},
	"uninstall": func(ctx context.Context, c client.Client, o CommandOptions) error {
		if err := refusal(o.RefusalFile); err != nil {
			return err
		}
		uninstaller := &installation.Uninstaller{
			Client:      c,
			Controller:  client.ObjectKey{Namespace: o.Namespace, Name: "sluice-controller"},
			QuietPeriod: quietPeriod,
			Interval:    time.Second,
		}
		return uninstaller.Run(ctx)
	},
}

// CommandOptions are the settings of a command.
type CommandOptions struct {
	Kubeconfig  string
	Namespace   string
	RefusalFile string
	Timeout     time.Duration
	Log         logging.Options
}

func (o *CommandOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.Namespace, "namespace", "sluice-system", "namespace that Sluice is installed in")
	flags.StringVar(&o.RefusalFile, "refusal-file", "", "file that says why nothing must be uninstalled; without such a file it may be")
	flags.DurationVar(&o.Timeout, "timeout", 4*time.Minute, "how long to try")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", restconfig.Usage)
	o.Log.AddFlags(flags)
}

// Validate returns an error that names every flag that is wrong, and what it should be.
func (o CommandOptions) Validate() error { return o.Log.Validate() }

// refusal is what the file says, or that nobody can tell; nil if there is no such file.
func refusal(path string) error {
	if path == "" {
		return nil
	}
	reason, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("find out whether something speaks against it: %w", err)
	}
	return errors.New(strings.TrimSpace(string(reason)))
}

// runCommand runs the command of that name.
func runCommand(ctx context.Context, name string, args []string) error {
	var o CommandOptions
	flags := pflag.NewFlagSet("sluice-controller "+name, pflag.ContinueOnError)
	flags.SortFlags = false
	o.addFlags(flags)
	switch err := errors.Join(flags.Parse(args), o.Validate()); {
	case errors.Is(err, pflag.ErrHelp):
		return nil
	case err != nil:
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	config, err := restconfig.Load(o.Kubeconfig, "sluice-controller/"+version)
	if err != nil {
		return err
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	return commands[name](logr.NewContext(ctx, o.Log.Logger(os.Stderr)), c, o)
}
