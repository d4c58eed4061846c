// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"fmt"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// SetupWithManager makes the manager serve the endpoint on every replica, with the certificate.
func SetupWithManager(mgr ctrl.Manager, o Options, certificate GetCertificate) (*Server, error) {
	endpointMetrics, err := NewMetrics(metrics.Registry)
	if err != nil {
		return nil, fmt.Errorf("register metrics of the credential endpoint: %w", err)
	}
	// The manager's client would list and watch all Secrets of the cluster to read one of them, so
	// the handler gets the API reader.
	handler := NewHandler(o, mgr.GetClient(), mgr.GetAPIReader(), mgr.GetEventRecorder("sluice-credentials"),
		endpointMetrics, mgr.GetLogger().WithName("credentials"))
	server, err := NewServer(o, certificate, handler)
	if err != nil {
		return nil, err
	}
	if err := mgr.Add(server); err != nil {
		return nil, fmt.Errorf("add the credential endpoint: %w", err)
	}
	return server, nil
}
