// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
)

var _ = Describe("An agent", func() {
	It("counts its pulls, their time and their bytes, by where the content came from", func(ctx SpecContext) {
		nodes := s.Cluster.Nodes()
		before := map[*cluster.Node]map[figure]float64{}
		for _, node := range nodes {
			before[node] = figuresOf(ctx, node)
		}
		name, _ := push(ctx, "measured/app:v1", "measured")
		eventuallyReady(ctx, prefetch(ctx, "measured", imagesOf(name)))

		seed := seedOf("measured/app")
		for _, node := range nodes {
			source, other := v1alpha1.SourceMirror, v1alpha1.SourceUpstream
			if node == seed {
				source, other = other, source
			}
			after := figuresOf(ctx, node)
			for figure, want := range map[figure]int64{
				{"sluice_agent_pulls_total", source, "Success"}:           1,
				{"sluice_agent_pulls_total", other, "Success"}:            0,
				{"sluice_agent_pull_duration_seconds", source, "Success"}: 1,
				{"sluice_agent_pull_duration_seconds", other, "Success"}:  0,
				{"sluice_agent_pulled_bytes_total", source, ""}:           imageStatus(ctx, node, name).PulledBytes,
				{"sluice_agent_pulled_bytes_total", other, ""}:            0,
			} {
				Expect(after[figure]-before[node][figure]).To(BeEquivalentTo(want), "%v of %s", figure, node.Name)
			}
		}
	})

	It("answers the kubelet's probes", func(ctx SpecContext) {
		for _, node := range s.Cluster.Nodes() {
			Expect(ask(ctx, node, "8081", "/healthz?verbose")).To(ContainSubstring("[+]ping ok"), node.Name)
			Expect(ask(ctx, node, "8081", "/readyz?verbose")).To(And(
				ContainSubstring("[+]synced ok"), ContainSubstring("[+]containerd ok")), node.Name)
		}
	})
})

// figure is a series of an agent's metrics.
type figure struct {
	metric string
	source v1alpha1.ImageSource
	result string
}

// figuresOf are the values of the agent's counters, and how often its histograms were
// observed.
func figuresOf(ctx context.Context, node *cluster.Node) map[figure]float64 {
	GinkgoHelper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(ask(ctx, node, "8080", "/metrics")))
	Expect(err).NotTo(HaveOccurred())
	figures := map[figure]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range m.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			figures[figure{name, v1alpha1.ImageSource(labels["source"]), labels["result"]}] +=
				m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return figures
}

// ask is what the node's agent answers.
func ask(ctx context.Context, node *cluster.Node, port, path string) string {
	GinkgoHelper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(node.IP, port)+path, nil)
	Expect(err).NotTo(HaveOccurred())
	response, err := http.DefaultClient.Do(request)
	Expect(err).NotTo(HaveOccurred())
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	Expect(err).NotTo(HaveOccurred())
	Expect(response).To(HaveHTTPStatus(http.StatusOK), string(body))
	return string(body)
}

// imageStatus is what the node says of an image.
func imageStatus(ctx context.Context, node *cluster.Node, name string) v1alpha1.NodeImageStatus {
	GinkgoHelper()
	var set v1alpha1.NodeImageSet
	Expect(s.Client.Get(ctx, client.ObjectKey{Name: node.Name}, &set)).To(Succeed())
	for _, image := range set.Status.Images {
		if image.Name == name {
			return image
		}
	}
	Fail(node.Name + " says nothing of " + name)
	return v1alpha1.NodeImageStatus{}
}
