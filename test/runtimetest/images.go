// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/test/images"
)

func parse(s string) imageref.Reference {
	GinkgoHelper()
	ref, err := imageref.Parse(s)
	Expect(err).NotTo(HaveOccurred())
	return ref
}

// artifactDigest is the digest of an image or an index.
func artifactDigest(artifact images.Artifact) digest.Digest {
	GinkgoHelper()
	d, err := artifact.Digest()
	Expect(err).NotTo(HaveOccurred())
	return digest.Digest(d.String())
}

func layerDigest(layer v1.Layer) digest.Digest {
	GinkgoHelper()
	d, err := layer.Digest()
	Expect(err).NotTo(HaveOccurred())
	return digest.Digest(d.String())
}

// lastLayer is the digest of the topmost layer of a single-platform image.
func lastLayer(artifact images.Artifact) (last digest.Digest) {
	GinkgoHelper()
	Expect(images.Walk(artifact, func(b images.Blob) error {
		if b.MediaType.IsLayer() {
			last = digest.Digest(b.Digest.String())
		}
		return nil
	})).To(Succeed())
	return last
}

// multiPlatform is an index with an image for the node, and a foreign one.
func multiPlatform(repository string) (index images.Artifact, d digest.Digest, foreign images.Artifact) {
	GinkgoHelper()
	ours, err := images.Image(images.Options{Layers: images.Layers(repository+"-amd64", 2, layerSize)})
	Expect(err).NotTo(HaveOccurred())
	theirs, err := images.Image(images.Options{Layers: images.Layers(repository+"-s390x", 2, layerSize), Platform: "linux/s390x"})
	Expect(err).NotTo(HaveOccurred())
	both, err := images.Index(theirs, ours)
	Expect(err).NotTo(HaveOccurred())
	return both, artifactDigest(both), theirs
}

// foreignIndex has nothing for the node.
func foreignIndex(repository string) images.Artifact {
	GinkgoHelper()
	theirs, err := images.Image(images.Options{Layers: images.Layers(repository+"-s390x", 1, layerSize), Platform: "linux/s390x"})
	Expect(err).NotTo(HaveOccurred())
	index, err := images.Index(theirs)
	Expect(err).NotTo(HaveOccurred())
	return index
}
