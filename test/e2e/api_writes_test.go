// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/audit"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

var _ = Describe("The cost of a distribution", Ordered, func() {
	const nodes, bound = 4, 3.0
	onStackOfItsOwn(stack.Options{Nodes: cluster.Nodes(nodes), Audit: true})

	// distribute brings some images of six layers over an uplink, and returns how many writes
	// of all of Sluice's that took for each node and image, and how long the images took.
	distribute := func(ctx context.Context, name string, count int, layer, uplink int64) (perNodeImage float64, took time.Duration) {
		GinkgoHelper()
		spec := v1alpha1.ImagePrefetchSpec{}
		for i := range count {
			app := fmt.Sprintf("%s/app-%d", name, i)
			image, err := images.Image(images.Options{Layers: images.Layers(app, 6, layer)})
			Expect(err).NotTo(HaveOccurred())
			ref, _ := pushArtifact(app+":v1", image)
			spec.Images = append(spec.Images, v1alpha1.ImageReference(ref))
		}
		s.Upstream.SetRate(uplink)
		began := time.Now()
		p := prefetch(ctx, name, spec)
		eventuallyReady(ctx, p)
		took = time.Since(began)
		// What is still to be written comes within the seconds for which the agents gather.
		Consistently(ready(ctx, p), 5*time.Second).Should(HaveField("Status", BeEquivalentTo("True")))

		all, err := audit.Read(s.Cluster.AuditLog())
		Expect(err).NotTo(HaveOccurred())
		writes := all.Where(audit.By(stack.Namespace), audit.Distributing, audit.After(began))
		AddReportEntry(fmt.Sprintf("API writes in %v", took.Round(100*time.Millisecond)), writes.Report())
		Expect(writes).NotTo(BeEmpty())
		return float64(len(writes)) / float64(nodes*count), took
	}

	It("is at most three API writes per node and image where images share them, all of Sluice's together", func(ctx SpecContext) {
		// Some seconds: images that are there at once have no progress to report.
		perNodeImage, took := distribute(ctx, "cost", 3, 2*images.MiB, 12*images.MiB)
		Expect(took).To(BeNumerically(">", 3*time.Second))
		Expect(perNodeImage).To(BeNumerically("<=", bound))
	})

	It("is at most three for an image alone, and one more for each report of its progress", func(ctx SpecContext) {
		perNodeImage, took := distribute(ctx, "cost-alone", 1, 6*images.MiB, 2*images.MiB)
		Expect(took).To(BeNumerically(">", 15*time.Second))
		Expect(perNodeImage).To(BeNumerically("<=", bound+float64(progressReports(took))))
		Expect(perNodeImage).To(BeNumerically(">", bound), "else there is no need to speak of reports")
	})
})

// progressReports is how often an agent tells of a pull that lasts so long, as
// docs/benchmarks.md says: after 1 s, 3 s, 7 s, 15 s and 31 s, and from then on every 30 s.
func progressReports(pull time.Duration) (reports int) {
	for at, pause := time.Second, 2*time.Second; at < pull; at, pause = at+pause, min(2*pause, 30*time.Second) {
		reports++
	}
	return reports
}
