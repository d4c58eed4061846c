// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/controllers/certificate"
	"github.com/sluice-dev/sluice/controllers/installation"
)

// keepCertificate adds to the manager what makes and renews the serving certificate. When it
// returns, there is a certificate.
func keepCertificate(ctx context.Context, mgr ctrl.Manager, options Options) error {
	secret, err := certificate.ParseSecret(options.SelfManagedCertificate)
	if err != nil {
		return err
	}
	// Not the manager's client, which would list and watch secrets.
	direct, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme()})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	service := "sluice-controller." + secret.Namespace + ".svc"
	keeper := &certificate.Keeper{
		Client:               direct,
		Secret:               secret,
		Dir:                  options.CertDir,
		Names:                []string{service, service + ".cluster.local"},
		WebhookConfiguration: installation.WebhookConfiguration,
		Clock:                clock.RealClock{},
	}
	if err := keeper.Ensure(ctx); err != nil {
		return err
	}
	return mgr.Add(keeper)
}
