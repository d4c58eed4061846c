// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("A prefetch", func() {
	It("fetches each manifest and blob of an image from upstream exactly once, by one node", func(ctx SpecContext) {
		image, err := images.Image(images.Options{Layers: images.Layers("once", 6, 2*images.MiB)})
		Expect(err).NotTo(HaveOccurred())
		name, digest := pushArtifact("once/app:v1", image)

		p := prefetch(ctx, "once", imagesOf(name))
		eventuallyReady(ctx, p)

		fetchedOnce("once/app", image)
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
			Expect(digestOn(ctx, node, stack.Registry+"/once/app@"+digest)).To(Equal(digest), node.Name)
		}
		Expect(p.Status.DesiredNodes).To(BeEquivalentTo(3))
		Expect(p.Status.ReadyNodes).To(BeEquivalentTo(3))
		Expect(p.Status.Images).To(ConsistOf(And(
			HaveField("Name", name), HaveField("Digest", digest),
			HaveField("ReadyNodes", BeEquivalentTo(3)), HaveField("UpstreamPulls", BeEquivalentTo(1)),
		)))
	})

	It("fetches of a multi-platform index what the nodes' platform needs, and only that", func(ctx SpecContext) {
		layers := images.Layers("index", 3, images.MiB)
		amd64, err := images.Image(images.Options{Layers: layers[:2], Platform: "linux/amd64"})
		Expect(err).NotTo(HaveOccurred())
		arm64, err := images.Image(images.Options{Layers: layers[2:], Platform: "linux/arm64"})
		Expect(err).NotTo(HaveOccurred())
		index, err := images.Index(amd64, arm64)
		Expect(err).NotTo(HaveOccurred())
		name, digest := pushArtifact("index/app:v1", index)

		eventuallyReady(ctx, prefetch(ctx, "index", imagesOf(name)))

		requests := s.Upstream.Requests().Where(upstream.In("index/app"))
		got := map[string]int{}
		for _, tally := range requests.Tallies() {
			got[tally.Digest] = tally.Complete
		}
		Expect(got).To(HaveKeyWithValue(digest, 1))
		Expect(got).To(HaveKeyWithValue(digestOf(amd64), 1))
		Expect(got).NotTo(HaveKey(digestOf(arm64)))
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
		}
	})

	It("never lets a peer ask the upstream, also where docker.io has an alias in a server line", func(ctx SpecContext) {
		image, err := images.Image(images.Options{Layers: images.Layers("hub", 4, images.MiB)})
		Expect(err).NotTo(HaveOccurred())
		Expect(s.Push("library/hubapp:v1", image)).To(Succeed())

		eventuallyReady(ctx, prefetch(ctx, "hub", imagesOf("hubapp:v1")))

		fetchedOnce("library/hubapp", image)
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, "docker.io/library/hubapp:v1")).To(Equal(digestOf(image)), node.Name)
		}
	})

	It("gives one digest to nodes that had three different ones under one tag", func(ctx SpecContext) {
		nodes := s.Cluster.Nodes()
		var name, digest string
		for i, node := range nodes {
			name, digest = push(ctx, "moved/app:latest", fmt.Sprintf("moved-%d", i))
			// Not through the mirror, which may answer for a tag with what it had before.
			_, err := node.Ctr(ctx, "images", "pull", "--plain-http", "--local", name)
			Expect(err).NotTo(HaveOccurred())
			Expect(digestOn(ctx, node, name)).To(Equal(digest))
		}
		_, digest = push(ctx, "moved/app:latest", "moved-now")

		eventuallyReady(ctx, prefetch(ctx, "moved", imagesOf(name)))

		for _, node := range nodes {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
		}
	})

	It("resolves a tag again when sluice.dev/refresh changes, and only then", func(ctx SpecContext) {
		name, before := push(ctx, "refresh/app:latest", "refresh-1")
		p := prefetch(ctx, "refresh", imagesOf(name))
		eventuallyReady(ctx, p)
		_, after := push(ctx, "refresh/app:latest", "refresh-2")
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(before), node.Name)
		}

		patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"sluice.dev/refresh":"again"}}}`))
		Expect(s.Client.Patch(ctx, p, patch)).To(Succeed())

		Eventually(func(g Gomega) {
			g.Expect(ready(ctx, p)(g).Status).To(Equal(metav1.ConditionTrue))
			g.Expect(p.Status.Images).To(ConsistOf(HaveField("Digest", after)))
		}).Should(Succeed())
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(after), node.Name)
		}
	})

	It("lets Pods start by tag and by digest with the registry cut off", func(ctx SpecContext) {
		name, digest := push(ctx, "outage/app:v1", "outage")
		eventuallyReady(ctx, prefetch(ctx, "outage", imagesOf(name)))
		Expect(s.Upstream.CutOff(upstream.Refuse)).To(Succeed())
		DeferCleanup(s.Upstream.Restore)

		for i, node := range s.Cluster.Nodes() {
			run(ctx, fmt.Sprintf("outage-tag-%d", i), node, name)
			run(ctx, fmt.Sprintf("outage-digest-%d", i), node, stack.Registry+"/outage/app@"+digest)
		}
	})

	It("brings an image of Docker's first years, whose config has no type of its own, and Pods run it", func(ctx SpecContext) {
		image, err := images.Pause(ctx, images.Layers("octets", 2, images.MiB)...)
		Expect(err).NotTo(HaveOccurred())
		old := mutate.ConfigMediaType(mutate.MediaType(image, types.DockerManifestSchema2), "application/octet-stream")
		name, digest := pushArtifact("octets/app:v1", old)

		eventuallyReady(ctx, prefetch(ctx, "octets", imagesOf(name)))

		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
			run(ctx, "octets-"+node.Name, node, name)
		}
	})

	It("brings back an image that is deleted from a node, without asking the upstream again", func(ctx SpecContext) {
		name, digest := push(ctx, "deleted/app:v1", "deleted")
		p := prefetch(ctx, "deleted", imagesOf(name))
		eventuallyReady(ctx, p)
		seed := seedOf("deleted/app")
		asked := len(s.Upstream.Requests().Where(upstream.In("deleted/app")))
		nodes := s.Cluster.Nodes()
		peer := nodes[slices.IndexFunc(nodes, func(n *cluster.Node) bool { return n != seed })]

		_, err := peer.Ctr(ctx, "images", "delete", "--sync", name, stack.Registry+"/deleted/app@"+digest)
		Expect(err).NotTo(HaveOccurred())

		Eventually(func() string { return digestOn(ctx, peer, name) }).Should(Equal(digest))
		eventuallyReady(ctx, p)
		Expect(s.Upstream.Requests().Where(upstream.In("deleted/app"))).To(HaveLen(asked))
	})

	It("survives a restart of a node's containerd", func(ctx SpecContext) {
		name, digest := push(ctx, "restarted/app:v1", "restarted")
		node := s.Cluster.Nodes()[1]
		node.Containerd.Kill()
		Expect(node.Containerd.Start(ctx)).To(Succeed())

		eventuallyReady(ctx, prefetch(ctx, "restarted", imagesOf(name)))

		Expect(digestOn(ctx, node, name)).To(Equal(digest))
	})

	It("is not Ready while no node matches, and says so", func(ctx SpecContext) {
		name, _ := push(ctx, "nobody/app:v1", "nobody")
		spec := imagesOf(name)
		spec.NodeSelector = map[string]string{"sluice.test/none": "such"}
		p := prefetch(ctx, "nobody", spec)

		Eventually(ready(ctx, p)).Should(And(
			HaveField("Status", metav1.ConditionFalse),
			HaveField("Reason", v1alpha1.ReasonNoMatchingNodes),
			HaveField("Message", ContainSubstring("nodeSelector")),
		))
		Expect(s.Upstream.Requests().Where(upstream.In("nobody/app"))).To(BeEmpty())
	})

	It("shows on the ImagePrefetch why a pull fails", func(ctx SpecContext) {
		p := prefetch(ctx, "missing", imagesOf(stack.Registry+"/missing/app:v1"))

		Eventually(func(g Gomega) {
			g.Expect(ready(ctx, p)(g).Status).To(Equal(metav1.ConditionFalse))
			g.Expect(p.Status.Failures).To(ContainElement(And(
				HaveField("Reason", v1alpha1.ReasonImageNotFound),
				HaveField("Image", stack.Registry+"/missing/app:v1"),
				HaveField("Message", Not(BeEmpty())),
			)))
		}).Should(Succeed())
		Eventually(func() []string { return events(ctx, p) }).Should(ContainElement(ContainSubstring("NodesFailed")))
	})

	It("takes in a node that is added later", func(ctx SpecContext) {
		name, digest := push(ctx, "later/app:v1", "later")
		p := prefetch(ctx, "later", imagesOf(name))
		eventuallyReady(ctx, p)
		asked := len(s.Upstream.Requests().Where(upstream.In("later/app")))

		node, err := s.AddNode(ctx, cluster.NodeOptions{})
		Expect(err).NotTo(HaveOccurred())

		Eventually(func(g Gomega) {
			g.Expect(ready(ctx, p)(g).Status).To(Equal(metav1.ConditionTrue))
			g.Expect(p.Status.ReadyNodes).To(BeEquivalentTo(4))
		}).Should(Succeed())
		Expect(digestOn(ctx, node, name)).To(Equal(digest))
		Expect(s.Upstream.Requests().Where(upstream.In("later/app"))).To(HaveLen(asked))
	})
})
