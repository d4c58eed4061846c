// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import "github.com/prometheus/client_golang/prometheus"

// Metrics are those of the credential endpoint.
type Metrics struct {
	requests *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_credential_requests_total",
			Help: "Requests of node agents for registry credentials, by result: OK, or the reason for which they were denied.",
		}, []string{"result"}),
	}
	if err := registry.Register(m.requests); err != nil {
		return nil, err
	}
	return m, nil
}

const resultOK = "OK"

// count counts a request by its result.
func (m *Metrics) count(result string) { m.requests.WithLabelValues(result).Inc() }
