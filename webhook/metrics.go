// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-dev/sluice/internal/hold"
)

// metrics are those of the gate webhook; controller-runtime counts and times requests.
type metrics struct {
	decisions *prometheus.CounterVec
}

// newMetrics makes the metrics and registers them.
func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_gate_decisions_total",
		Help: "Writes of gated or held Deployments, by what the gate decided; dry runs are not counted, and a write about which the API server asks again, since another webhook changed it, counts twice.",
	}, []string{"outcome"})}
	for _, outcome := range hold.Outcomes {
		m.decisions.WithLabelValues(string(outcome))
	}
	if err := registry.Register(m.decisions); err != nil {
		return nil, err
	}
	return m, nil
}
