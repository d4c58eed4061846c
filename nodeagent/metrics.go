// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the agent. Labels are bounded: source is Local, Mirror or Upstream,
// result is Success or a reason of the API.
type Metrics struct {
	pulls    *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_agent_pulls_total",
			Help: "Pulls that ended, by where the content came from and how they ended.",
		}, []string{"source", "result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_agent_pulled_bytes_total",
			Help: "Bytes received over the network, failed pulls included. " +
				"Those of Upstream are what seeds received through the node's hosts.toml, from its mirrors as well.",
		}, []string{"source"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_agent_pull_duration_seconds",
			Help:    "How long a pull took, from its start to its end.",
			Buckets: prometheus.ExponentialBuckets(0.25, 2, 14), // to 34 minutes
		}, []string{"source", "result"}),
	}
	for _, collector := range []prometheus.Collector{m.pulls, m.bytes, m.duration} {
		if err := registry.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

const resultSuccess = "Success"

// observe counts a pull that ended. Of an abandoned one it counts only the bytes.
func (m *Metrics) observe(att *attempt, result Result, err error, took time.Duration) {
	if m == nil {
		return
	}
	from, outcome := string(result.Source), resultSuccess
	if err != nil {
		from, outcome = string(sourceOf(att.pull.Policy)), classify(err).reason
	}
	m.bytes.WithLabelValues(from).Add(float64(max(result.PulledBytes, att.latestProgress().PulledBytes)))
	if att.abandoned {
		return
	}
	m.pulls.WithLabelValues(from, outcome).Inc()
	m.duration.WithLabelValues(from, outcome).Observe(took.Seconds())
}
