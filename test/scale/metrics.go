// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metric is a sample of a program's metrics. A histogram has one for each bucket.
type metric struct {
	name   string
	labels map[string]string
	value  float64
	most   float64 // of a bucket
}

// scrape reads the metrics at a URL.
func scrape(ctx context.Context, url string) ([]metric, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", url, response.Status)
	}
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return parseMetrics(data)
}

func parseMetrics(data []byte) (all []metric, err error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, pair := range m.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
			all = append(all, metric{name: name, labels: labels, value: value})
			for _, bucket := range m.GetHistogram().GetBucket() {
				all = append(all, metric{name: name + "_bucket", labels: labels, value: float64(bucket.GetCumulativeCount()), most: bucket.GetUpperBound()})
			}
		}
	}
	return all, nil
}

// sum adds up what has these labels, names and values in turn.
func sum(all []metric, name string, labels ...string) (total float64) {
	for _, m := range all {
		if m.name == name && m.has(labels) {
			total += m.value
		}
	}
	return total
}

func (m metric) has(labels []string) bool {
	for pair := range slices.Chunk(labels, 2) {
		if m.labels[pair[0]] != pair[1] {
			return false
		}
	}
	return true
}

// buckets are the counts of a histogram by their upper bounds.
func buckets(all []metric, name string, labels ...string) map[float64]float64 {
	counts := map[float64]float64{}
	for _, m := range all {
		if m.name == name+"_bucket" && m.has(labels) {
			counts[m.most] += m.value
		}
	}
	return counts
}
