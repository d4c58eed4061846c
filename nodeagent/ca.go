// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// caKey is where the controller publishes its CA in the ConfigMap.
const caKey = "ca.crt"

// CAReader returns what reads the CA of the controller from a ConfigMap. It asks the API server each
// time: a volume would be behind by up to two minutes, and the controller serves with a new CA two
// seconds after it has published that.
func CAReader(reader client.Reader, configMap client.ObjectKey) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var published corev1.ConfigMap
		if err := reader.Get(ctx, configMap, &published); err != nil {
			return nil, fmt.Errorf("get ConfigMap %s: %w", configMap, err)
		}
		return []byte(published.Data[caKey]), nil
	}
}
