// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
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
	const nodes, wanted, bound = 4, 3, 3.0
	onStackOfItsOwn(stack.Options{Nodes: cluster.Nodes(nodes), Audit: true})

	It("is at most three API writes per node and image, all of Sluice's together", func(ctx SpecContext) {
		spec := v1alpha1.ImagePrefetchSpec{}
		for i := range wanted {
			image, err := images.Image(images.Options{Layers: images.Layers(fmt.Sprintf("cost-%d", i), 6, 2*images.MiB)})
			Expect(err).NotTo(HaveOccurred())
			name, _ := pushArtifact(fmt.Sprintf("cost/app-%d:v1", i), image)
			spec.Images = append(spec.Images, v1alpha1.ImageReference(name))
		}
		// A distribution of some seconds: one that is over at once has no progress to report.
		s.Upstream.SetRate(12 * images.MiB)
		began := time.Now()

		p := prefetch(ctx, "cost", spec)
		eventuallyReady(ctx, p)
		// What is still to be written comes within the seconds for which the agents gather.
		Consistently(ready(ctx, p), 5*time.Second).Should(HaveField("Status", BeEquivalentTo("True")))

		all, err := audit.Read(s.Cluster.AuditLog())
		Expect(err).NotTo(HaveOccurred())
		writes := all.Where(audit.By(stack.Namespace), audit.Distributing, audit.After(began))
		perNodeImage := float64(len(writes)) / (nodes * wanted)
		AddReportEntry("API writes", writes.Report())
		Expect(perNodeImage).To(BeNumerically("<=", bound), writes.Report())
		Expect(writes).NotTo(BeEmpty())
	})
})
