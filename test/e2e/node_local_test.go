// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
)

// nodeLocal is a registry that does not exist. Its images are imported into the nodes.
const nodeLocal = "local.sluice.test"

var _ = Describe("An image that is in no registry", func() {
	importOn := func(ctx context.Context, name, content string, nodes ...*cluster.Node) (digest string) {
		GinkgoHelper()
		image, err := images.Image(images.Options{Layers: images.Layers(content, 2, images.KiB), Seed: content})
		Expect(err).NotTo(HaveOccurred())
		var archive bytes.Buffer
		Expect(images.WriteArchive(&archive, name, image)).To(Succeed())
		for _, node := range nodes {
			Expect(node.Import(ctx, bytes.NewReader(archive.Bytes()))).To(Succeed())
			DeferCleanup(func(ctx SpecContext) {
				_, err := node.Ctr(ctx, "images", "rm", name)
				Expect(err).NotTo(HaveOccurred())
			})
		}
		d, err := image.Digest()
		Expect(err).NotTo(HaveOccurred())
		return d.String()
	}

	It("is what all nodes have under its name, and the ImagePrefetch says so as soon as they do", func(ctx SpecContext) {
		nodes := s.Cluster.Nodes()
		name := nodeLocal + "/team/app:v1"
		digest := importOn(ctx, name, "node-local", nodes[1:]...)
		p := prefetch(ctx, "node-local", imagesOf(name))

		By("one node without it")
		Eventually(func(g Gomega) {
			g.Expect(ready(ctx, p)(g)).To(And(HaveField("Status", metav1.ConditionFalse), HaveField("Reason", v1alpha1.ReasonNodesFailed)))
			g.Expect(p.Status.Failures).To(ConsistOf(And(HaveField("Node", nodes[0].Name), HaveField("Reason", v1alpha1.ReasonImageNotOnNode),
				HaveField("Message", ContainSubstring("import it there")))))
		}).Should(Succeed())

		By("another one on that node")
		other := importOn(ctx, name, "something-else", nodes[0])
		Eventually(func(g Gomega) {
			g.Expect(ready(ctx, p)(g)).To(And(HaveField("Reason", v1alpha1.ReasonNodesDisagree),
				HaveField("Message", And(ContainSubstring(digest), ContainSubstring(other)))))
		}).Should(Succeed())

		By("the same on all")
		importOn(ctx, name, "node-local", nodes[0])
		eventuallyReady(ctx, p)
		Expect(p.Status.Images).To(ConsistOf(HaveField("Digest", digest)))
		for _, node := range nodes {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
		}
	})
})
