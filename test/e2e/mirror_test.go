// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("A cluster whose mirrors serve nothing", Ordered, func() {
	onStackOfItsOwn(stack.Options{})

	DescribeTable("gets the image all the same, one node after the other, and says so", func(ctx SpecContext, repository string, fail func(*cluster.Node)) {
		for _, node := range s.Cluster.Nodes() {
			fail(node)
		}
		seeds, err := s.WatchSeeds(ctx)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(seeds.Stop)
		name, digest := push(ctx, repository+":v1", repository)
		spec := imagesOf(name)
		spec.ImageDownloadRetryLimit = new(int32) // a node that the mirror fails has tried long enough

		p := prefetch(ctx, strings.ReplaceAll(repository, "/", "-"), spec)
		eventuallyReady(ctx, p)

		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
		}
		Expect(seeds.Most()).To(Equal(map[string]int{name: 1}), "more nodes than one at a time: %s", seeds.When(name))
		turns := turns(s.Upstream.Requests().Where(upstream.In(repository)))
		Expect(turns).To(HaveLen(3), "each node asks the upstream within one turn of its own")
		Expect(events(ctx, p)).To(ContainElement(HavePrefix(v1alpha1.ReasonMirrorUnavailable + ": ")))
	},
		Entry("that take connections and answer nothing", "alone/hanging", func(node *cluster.Node) {
			mirror := node.Mirror.Process()
			mirror.Signal(unix.SIGSTOP)
			DeferCleanup(mirror.Signal, unix.SIGCONT)
		}),
		Entry("that do not run", "alone/dead", func(node *cluster.Node) { node.Mirror.Stop() }),
	)
})

// turns are the clients in the order in which they asked.
func turns(requests upstream.Requests) []string {
	var clients []string
	for _, r := range requests {
		clients = append(clients, r.Client)
	}
	return slices.Compact(clients)
}

var _ = Describe("A cluster whose mirrors miss what they have, as Spegel's do", Ordered, func() {
	onStackOfItsOwn(stack.Options{Nodes: cluster.Nodes(4)})

	It("gets every blob from upstream once, by one node", func(ctx SpecContext) {
		image, err := images.Image(images.Options{Layers: images.Layers("rude", 8, images.MiB)})
		Expect(err).NotTo(HaveOccurred())
		name, digest := pushArtifact("rude/app:v1", image)
		s.Upstream.SetRate(4 * images.MiB) // peers ask for layers that are not there yet

		eventuallyReady(ctx, prefetch(ctx, "rude", imagesOf(name)))

		fetchedOnce("rude/app", image)
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
		}
	})

	It("gives a node that joins later the image without asking the upstream", func(ctx SpecContext) {
		name, digest := push(ctx, "rude/later:v1", "rude-later")
		p := prefetch(ctx, "rude-later", imagesOf(name))
		eventuallyReady(ctx, p)
		asked := len(s.Upstream.Requests().Where(upstream.In("rude/later")))

		node, err := s.AddNode(ctx, cluster.NodeOptions{})
		Expect(err).NotTo(HaveOccurred())

		Eventually(func() string { return digestOn(ctx, node, name) }).WithTimeout(time.Minute).Should(Equal(digest))
		Expect(s.Upstream.Requests().Where(upstream.In("rude/later"))).To(HaveLen(asked))
	})
})
