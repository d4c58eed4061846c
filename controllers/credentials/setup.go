// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"fmt"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// SetupWithManager has the manager serve the endpoint on every replica.
func SetupWithManager(mgr ctrl.Manager, o Options) (*Server, error) {
	// The API reader, for the manager's client would list and watch every Secret of
	// the cluster to answer for one.
	handler, err := NewHandler(o, mgr.GetClient(), mgr.GetAPIReader(), mgr.GetEventRecorder("sluice-credentials"),
		metrics.Registry, mgr.GetLogger().WithName("credentials"))
	if err != nil {
		return nil, err
	}
	server, err := NewServer(o, handler)
	if err != nil {
		return nil, err
	}
	if err := mgr.Add(server); err != nil {
		return nil, fmt.Errorf("add the credential endpoint: %w", err)
	}
	return server, nil
}
