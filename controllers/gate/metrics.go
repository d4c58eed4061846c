// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-dev/sluice/internal/hold"
)

// Metrics are those of the gate controller.
type Metrics struct {
	holdsActive  prometheus.Gauge
	holdDuration *prometheus.HistogramVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		holdsActive: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_gate_holds_active",
			Help: "Deployments that are held now.",
		}),
		holdDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_gate_hold_duration_seconds",
			Help:    "How long Deployments were held, by how the hold ended.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 13), // 1 s to 68 min
		}, []string{"end"}),
	}
	for _, end := range hold.Ends {
		m.holdDuration.WithLabelValues(string(end))
	}
	for _, collector := range []prometheus.Collector{m.holdsActive, m.holdDuration} {
		if err := registry.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) observeEnd(end hold.End, held time.Duration) {
	m.holdDuration.WithLabelValues(string(end)).Observe(held.Seconds())
}
