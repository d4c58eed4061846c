// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package restconfig says how a program of Sluice's reaches the API server.
package restconfig

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Usage describes the flag whose value Load takes.
const Usage = "file that says how to reach the API server (default: $KUBECONFIG, ~/.kube/config, or as a Pod does)"

// Load returns the configuration of a client: from the named file, otherwise from $KUBECONFIG or
// ~/.kube/config, otherwise a Pod's. The client does not limit its rate, because the API server does
// (API Priority and Fairness). The user agent is "program/version". It fails if there is no
// configuration, or it cannot be read.
func Load(kubeconfig, userAgent string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("load the client configuration: %w", err)
	}
	config.QPS = -1
	config.UserAgent = userAgent
	return config, nil
}
