// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Metrics are those of the distribution controller.
type Metrics struct {
	assigned      *prometheus.CounterVec
	seedsReplaced prometheus.Counter
	waveNodes     prometheus.Histogram
	timeToReady   prometheus.Histogram
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		assigned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_pulls_assigned_total",
			Help: "Images assigned to nodes, by where the nodes may pull them from (Default: the upstream, Mirror: the mirror only).",
		}, []string{"registry_policy"}),
		seedsReplaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_seeds_replaced_total",
			Help: "Seeds that were demoted before they had the image, though it was still wanted.",
		}),
		waveNodes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sluice_wave_nodes",
			Help:    "Nodes that one pass let pull the same image from the mirror.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}),
		timeToReady: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sluice_imageprefetch_time_to_ready_seconds",
			Help:    "Time from an ImagePrefetch becoming not Ready, or being created, to it being Ready.",
			Buckets: prometheus.ExponentialBuckets(0.5, 2, 14),
		}),
	}
	for _, collector := range []prometheus.Collector{m.assigned, m.seedsReplaced, m.waveNodes, m.timeToReady} {
		if err := registry.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// countAssignments counts the changes of writes that succeeded. wanted reports whether any
// ImagePrefetch wants an image.
func (m *Metrics) countAssignments(writes []*setWrite, wanted func(image string) bool) {
	waves := map[string]int{}
	for _, write := range writes {
		for _, name := range gained(write.before, write.set.Spec.ImageSet, v1alpha1.RegistryPolicyMirror) {
			if !write.reportsPresent(name) {
				m.assigned.WithLabelValues(string(v1alpha1.RegistryPolicyMirror)).Inc()
				waves[name]++
			}
		}
		for range gained(write.before, write.set.Spec.ImageSet, v1alpha1.RegistryPolicyDefault) {
			m.assigned.WithLabelValues(string(v1alpha1.RegistryPolicyDefault)).Inc()
		}
		for _, name := range lost(write.before, write.set.Spec.ImageSet, v1alpha1.RegistryPolicyDefault) {
			if !write.reportsPresent(name) && wanted(name) {
				m.seedsReplaced.Inc()
			}
		}
	}
	for _, nodes := range waves {
		m.waveNodes.Observe(float64(nodes))
	}
}

// observeTimeToReady records how long an ImagePrefetch that is Ready now was not.
func (m *Metrics) observeTimeToReady(took time.Duration) { m.timeToReady.Observe(took.Seconds()) }
