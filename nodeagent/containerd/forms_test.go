// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// forms are images as registries have them, of layers of a KiB.
var forms = []struct {
	name  string
	build func(layers []v1.Layer) images.Artifact
}{
	{"an image with 127 layers", func([]v1.Layer) images.Artifact {
		return form(empty.Image, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, images.Layers("many", 127, images.KiB))
	}},
	{"a layer that is listed twice", func(layers []v1.Layer) images.Artifact {
		return form(empty.Image, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, append(layers, layers[0]))
	}},
	{"Docker's schema 2", func(layers []v1.Layer) images.Artifact {
		return form(empty.Image, types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, layers)
	}},
	{"layers compressed with zstd", func(layers []v1.Layer) images.Artifact {
		var compressed []v1.Layer
		for _, layer := range layers {
			raw := tarOf(layer)
			zstd, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
				tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
			Expect(err).NotTo(HaveOccurred())
			compressed = append(compressed, zstd)
		}
		return form(empty.Image, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayerZStd, compressed)
	}},
	{"layers that are not compressed", func(layers []v1.Layer) images.Artifact {
		var plain []v1.Layer
		for _, layer := range layers {
			raw := tarOf(layer)
			plain = append(plain, static.NewLayer(raw, types.OCIUncompressedLayer))
		}
		return form(empty.Image, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCIUncompressedLayer, plain)
	}},
	{"an index within an index", func(layers []v1.Layer) images.Artifact {
		inner := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
			Add: ociImage(layers), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
		})
		return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: inner})
	}},
	{"an index whose entry has no platform", func(layers []v1.Layer) images.Artifact {
		return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: ociImage(layers)})
	}},
	{"Docker's config of old, in an index", func(layers []v1.Layer) images.Artifact {
		return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList), mutate.IndexAddendum{
			Add:        form(empty.Image, types.DockerManifestSchema2, "application/octet-stream", types.DockerLayer, layers),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
		})
	}},
	{"Docker's config of old", func(layers []v1.Layer) images.Artifact {
		return form(empty.Image, types.DockerManifestSchema2, "application/octet-stream", types.DockerLayer, layers)
	}},
	{"an index with attestations", func(layers []v1.Layer) images.Artifact {
		attestation := mutate.ConfigMediaType(ociImage(images.Layers("attestation", 1, images.KiB)), "application/vnd.oci.empty.v1+json")
		return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
			mutate.IndexAddendum{Add: ociImage(layers), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
			mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	}},
}

// The page lists what is run, no more and no less.
func TestFormsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(page), "\n### Kinds of image\n")
	list, _, _ = strings.Cut(list, "\n#")
	for _, f := range forms {
		item := "\n- " + f.name + "\n"
		if !strings.Contains(list, item) {
			t.Errorf("docs/compatibility.md does not list %q", f.name)
		}
		list = strings.Replace(list, item, "\n", 1)
	}
	if strings.Contains(list, "\n- ") {
		t.Errorf("docs/compatibility.md lists what is not run:%s", list)
	}
}

func tarOf(layer v1.Layer) []byte {
	GinkgoHelper()
	stream, err := layer.Uncompressed()
	Expect(err).NotTo(HaveOccurred())
	defer func() { Expect(stream.Close()).To(Succeed()) }()
	raw, err := io.ReadAll(stream)
	Expect(err).NotTo(HaveOccurred())
	return raw
}

func ociImage(layers []v1.Layer) v1.Image {
	return form(empty.Image, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, layers)
}

// form is an image for the tests' platform with these media types.
func form(base v1.Image, manifest, config, layer types.MediaType, layers []v1.Layer) v1.Image {
	GinkgoHelper()
	image := mutate.ConfigMediaType(mutate.MediaType(base, manifest), config)
	for _, l := range layers {
		var err error
		image, err = mutate.Append(image, mutate.Addendum{Layer: l, MediaType: layer})
		Expect(err).NotTo(HaveOccurred())
	}
	file, err := image.ConfigFile()
	Expect(err).NotTo(HaveOccurred())
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	image, err = mutate.ConfigFile(image, file)
	Expect(err).NotTo(HaveOccurred())
	return image
}

var _ = Describe("An image that the kubelet can pull", func() {
	for _, policy := range []v1alpha1.RegistryPolicy{seed, peer} {
		for _, f := range forms {
			It("is brought whole, "+string(policy)+": "+f.name, func(ctx context.Context) {
				p := newPair("form")
				artifact := f.build(images.Layers(f.name+string(policy), 2, images.KiB))
				Expect(p.registry.Push(p.repository+":v1", artifact)).To(Succeed())
				Expect(p.mirror.Push(p.repository+":v1", artifact)).To(Succeed())
				d, err := artifact.Digest()
				Expect(err).NotTo(HaveOccurred())
				p.digest = digest.Digest(d.String())
				runtime := start(options())
				Expect(pull(ctx, runtime, p.request(policy))).To(HaveField("Digest", p.digest))
				Expect(present(ctx, runtime, p)).To(BeTrue())
				name := p.ref.Names(p.digest)[0]
				Eventually(ctx, func() any { return status(ctx, name) }).ShouldNot(BeNil(), "CRI knows it")
			}, SpecTimeout(specTimeout))
		}
	}
})

var _ = Describe("What no container can run", func() {
	for _, policy := range []v1alpha1.RegistryPolicy{seed, peer} {
		DescribeTable("is refused in words: "+string(policy),
			func(ctx context.Context, change func(v1.Image) v1.Image, want string) {
				p := newPair("refused-" + string(policy))
				p.image = change(p.image.(v1.Image))
				Expect(p.registry.Push(p.repository+":v1", p.image)).To(Succeed())
				Expect(p.mirror.Push(p.repository+":v1", p.image)).To(Succeed())
				d, err := p.image.Digest()
				Expect(err).NotTo(HaveOccurred())
				p.digest = digest.Digest(d.String())

				runtime := start(options())
				_, err = pull(ctx, runtime, p.request(policy))
				Expect(err).To(MatchError(nodeagent.ErrImageInvalid))
				Expect(err).To(MatchError(ContainSubstring(want)))
				Expect(present(ctx, runtime, p)).To(BeFalse())
				if policy == peer {
					Expect(p.mirror.Requests().Where(upstream.Blobs)).To(BeEmpty(), "the manifest alone tells")
				}
			},
			Entry("an artifact of another kind", func(image v1.Image) v1.Image {
				return mutate.ConfigMediaType(image, "application/vnd.cncf.helm.config.v1+json")
			}, `"application/vnd.cncf.helm.config.v1+json", so that it is no container image`, SpecTimeout(specTimeout)),
			Entry("a config that would fill the agent's memory", func(image v1.Image) v1.Image {
				large, err := mutate.Config(image, v1.Config{Labels: map[string]string{"large": strings.Repeat("x", 9<<20)}})
				Expect(err).NotTo(HaveOccurred())
				return large
			}, "a manifest or config may have 8388608", SpecTimeout(specTimeout)),
		)
	}
})
