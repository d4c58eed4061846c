// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/controllers/certificate"
	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/internal/objectkey"
)

// newKeeper returns what has the serving certificate, once the manager runs it; nil if nothing is served.
func newKeeper(config *rest.Config, scheme *runtime.Scheme, options Options) (*certificate.Keeper, error) {
	if options.CertificateSecret == "" {
		return nil, nil
	}
	secret, err := objectkey.Parse(options.CertificateSecret)
	if err != nil {
		return nil, err
	}
	// Not the manager's client, which would list and watch secrets.
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	service := "sluice-controller." + secret.Namespace + ".svc"
	return &certificate.Keeper{
		Client:               direct,
		Secret:               secret,
		CA:                   client.ObjectKey{Namespace: secret.Namespace, Name: installation.CAConfigMap},
		SelfManaged:          options.SelfManagedCertificate,
		Names:                []string{service, service + ".cluster.local"},
		WebhookConfiguration: installation.WebhookConfiguration,
		Clock:                clock.RealClock{},
	}, nil
}
