// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"context"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
)

var _ = Describe("What a node has under a name", func() {
	// bring imports an image of one layer, so that its only snapshot bears the layer's own
	// digest, and returns what is found of it.
	bring := func(ctx context.Context, name string) (digest string, layer v1.Layer, find func() (cluster.Image, error)) {
		GinkgoHelper()
		node := shared.Nodes()[0]
		layer = images.Layer(name, images.MiB)
		image, err := images.Image(images.Options{Layers: []v1.Layer{layer}})
		Expect(err).NotTo(HaveOccurred())
		var archive bytes.Buffer
		Expect(images.WriteArchive(&archive, name, image)).To(Succeed())
		Expect(node.Import(ctx, &archive)).To(Succeed())
		DeferCleanup(func(ctx context.Context) error {
			_, err := node.Ctr(ctx, "images", "delete", "--sync", name)
			return err
		})
		return must(image.Digest()).String(), layer, func() (cluster.Image, error) {
			found, err := node.Images(ctx, name)
			return found[name], err
		}
	}

	It("is usable when all its content is there, and unpacked", func(ctx context.Context) {
		digest, _, find := bring(ctx, "example.com/usable:v1")
		image := must(find())
		Expect(image).To(Equal(cluster.Image{Digest: digest, Content: "complete (2/2)", Unpacked: true}))
		Expect(image.Usable()).To(BeTrue())
		Expect(image.String()).To(Equal(digest))
	}, SpecTimeout(specTimeout))

	It("is not usable without one of its layers", func(ctx context.Context) {
		digest, layer, find := bring(ctx, "example.com/incomplete:v1")
		_, err := shared.Nodes()[0].Ctr(ctx, "content", "delete", must(layer.Digest()).String())
		Expect(err).NotTo(HaveOccurred())
		image := must(find())
		Expect(image.Usable()).To(BeFalse())
		Expect(image.String()).To(Equal(digest + ", incomplete (1/2)"))
	}, SpecTimeout(specTimeout))

	It("is not usable without its snapshot", func(ctx context.Context) {
		digest, layer, find := bring(ctx, "example.com/packed:v1")
		_, err := shared.Nodes()[0].Ctr(ctx, "snapshots", "remove", must(layer.DiffID()).String())
		Expect(err).NotTo(HaveOccurred())
		image := must(find())
		Expect(image.Usable()).To(BeFalse())
		Expect(image.String()).To(Equal(digest + ", complete (2/2), not unpacked"))
	}, SpecTimeout(specTimeout))

	It("is an error without its manifest", func(ctx context.Context) {
		digest, _, find := bring(ctx, "example.com/hollow:v1")
		_, err := shared.Nodes()[0].Ctr(ctx, "content", "delete", digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(find()).Error().To(MatchError(ContainSubstring(digest)))
	}, SpecTimeout(specTimeout))

	It("is nothing when the name is unknown", func(ctx context.Context) {
		found, err := shared.Nodes()[0].Images(ctx, "example.com/unknown:v1")
		Expect(err).NotTo(HaveOccurred())
		Expect(found).To(BeEmpty())
	}, SpecTimeout(specTimeout))
})
