// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics have Spegel's names and labels.
type metrics struct {
	requests *prometheus.CounterVec
	resolve  *prometheus.HistogramVec
}

func newMetrics(registerer prometheus.Registerer) metrics {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spegel_mirror_requests_total",
			Help: "Requests of the node itself, by whether the mirror could answer.",
		}, []string{"registry", "cache"}),
		resolve: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "spegel_resolve_duration_seconds",
			Help: "Time until a peer was found.",
		}, []string{"router"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.requests, m.resolve)
	}
	return m
}

func (m metrics) request(registry string, hit bool) {
	cache := "miss"
	if hit {
		cache = "hit"
	}
	m.requests.WithLabelValues(registry, cache).Inc()
}

func (m metrics) resolved(took time.Duration) {
	m.resolve.WithLabelValues("peers").Observe(took.Seconds())
}
