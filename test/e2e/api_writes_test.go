// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/audit"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// A bound has a fixed part, and what the intervals permit in the time that the distribution took:
// it holds on a slow machine too. docs/benchmarks.md has it as a table.
var _ = Describe("The cost of a distribution", Ordered, func() {
	const nodes = 4
	onStackOfItsOwn(stack.Options{Nodes: cluster.Nodes(nodes), Audit: true, AuditObjects: true})

	// distribute brings images of six layers over an uplink, and returns what all accounts of
	// Sluice's wrote for that. It checks what holds for any distribution without faults.
	distribute := func(ctx context.Context, name string, count int, layer, uplink int64) *cost {
		GinkgoHelper()
		var refs []string
		for i := range count {
			app := fmt.Sprintf("%s/app-%d", name, i)
			image, err := images.Image(images.Options{Layers: images.Layers(app, 6, layer)})
			Expect(err).NotTo(HaveOccurred())
			ref, _ := pushArtifact(app+":v1", image)
			refs = append(refs, ref)
		}
		s.Upstream.SetRate(uplink)
		Eventually(settled(ctx)).Should(BeTrue(), "what the spec before has left is written")
		began := time.Now()
		p := prefetch(ctx, name, imagesOf(refs...))
		eventuallyReady(ctx, p)
		// What is still to be written comes within the seconds for which the agents gather.
		Consistently(ready(ctx, p), 5*time.Second).Should(HaveField("Status", BeEquivalentTo("True")))

		all, err := audit.Read(s.Cluster.AuditLog())
		Expect(err).NotTo(HaveOccurred())
		c := costOf(all.Where(audit.By(stack.Namespace), audit.Distributing, audit.After(began)))
		AddReportEntry(fmt.Sprintf("%.1f API writes per node and image of %s", float64(len(c.writes))/float64(nodes*count), name), c.String())

		seeded := map[string]int{}
		for i := range count {
			seeded[seedOf(fmt.Sprintf("%s/app-%d", name, i)).Name]++
		}
		Expect(c.nodes).To(HaveLen(nodes))
		for node, own := range c.nodes {
			Expect(own.entries).To(BeNumerically("<=", count+2*seeded[node]), "specs of %s: a seed's entry gets the digest, and becomes a peer's", node)
			Expect(own.told).To(BeNumerically("<=", own.entries+2*count+seeded[node]),
				"reports of %s: each spec is acknowledged; an image is pulled, and there; a seed tells the digest", node)
			Expect(own.progress).To(BeNumerically("<=", own.permitted()), "reports of progress alone of %s", node)
			Expect(own.heartbeats).To(BeNumerically("<=", c.permittedHeartbeats()), "heartbeats of %s", node)
		}
		const reasons = 3 // that Ready has: WaitingForSeeds, Distributing, AllNodesHoldImages
		Expect(c.told).To(BeNumerically("<=", count+reasons), "statuses with a digest or a reason that is new")
		Expect(c.events).To(BeNumerically("<=", reasons))
		Expect(c.counts).To(BeNumerically("<=", c.permittedCounts()), "statuses in which only counts differ")
		Expect(c.stale).To(BeNumerically("<=", c.reports()), "writes of a spec that met a report")
		Expect(c.early).To(BeEmpty())
		Expect(c.others).To(BeEmpty())
		return c
	}

	It("is bounded where three images come together within seconds", func(ctx SpecContext) {
		distribute(ctx, "cost", 3, 2*images.MiB, 12*images.MiB)
	})

	It("grows with the time that an image takes by reports of progress and by counts alone", func(ctx SpecContext) {
		c := distribute(ctx, "cost-slow", 1, 7*images.MiB, 2*images.MiB)
		Expect(c.progress()).To(BeNumerically(">", 0), "otherwise nothing grew")
	})
})

// settled reports whether no node is asked for anything, and each agent has acknowledged that.
func settled(ctx context.Context) func(Gomega) bool {
	return func(g Gomega) bool {
		var sets v1alpha1.NodeImageSetList
		g.Expect(s.Client.List(ctx, &sets)).To(Succeed())
		return !slices.ContainsFunc(sets.Items, func(set v1alpha1.NodeImageSet) bool {
			return len(set.Spec.ImageSet) > 0 || set.Status.ObservedGeneration != set.Generation
		})
	}
}
