// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"

	"github.com/containerd/containerd/v2/core/leases"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// pair is a registry and a mirror that both serve one image.
type pair struct {
	registry, mirror *upstream.Server
	repository       string
	image            images.Artifact
	ref              imageref.Reference
	digest           digest.Digest
}

// newPair configures the node with a mirror that may not resolve tags, and pushes an
// image of three layers of 1 MiB to both.
func newPair(name string) *pair {
	GinkgoHelper()
	p := &pair{registry: serve(), mirror: serve(), repository: "team/app"}
	p.configure("pull")
	p.push(name, 3, images.MiB)
	return p
}

func (p *pair) configure(capability string) {
	GinkgoHelper()
	hosts(p.registry.Host(), `
server = %q
[host.%q]
  capabilities = ["pull", %q]
`, p.registry.URL(), p.mirror.URL(), capability)
}

// push moves the tag to another image, in registry and mirror.
func (p *pair) push(name string, layers int, size int64) {
	GinkgoHelper()
	p.pushLayers(name, images.Layers(name, layers, size))
}

// pushLayers is push for layers of any kind.
func (p *pair) pushLayers(name string, layers []v1.Layer) {
	GinkgoHelper()
	image, err := images.Image(images.Options{Layers: layers, Seed: name})
	Expect(err).NotTo(HaveOccurred())
	Expect(p.registry.Push(p.repository+":v1", image)).To(Succeed())
	Expect(p.mirror.Push(p.repository+":v1", image)).To(Succeed())
	d, err := image.Digest()
	Expect(err).NotTo(HaveOccurred())
	p.image, p.digest = image, digest.Digest(d.String())
	p.ref, err = imageref.Parse(p.registry.Host() + "/" + p.repository + ":v1")
	Expect(err).NotTo(HaveOccurred())
}

// request is for the tag. A peer gets its digest; a seed resolves it.
func (p *pair) request(policy v1alpha1.RegistryPolicy) nodeagent.PullRequest {
	req := nodeagent.PullRequest{Ref: p.ref, Policy: policy, Pinned: true}
	if policy == v1alpha1.RegistryPolicyMirror {
		req.Digest = p.digest
	}
	return req
}

// layers are the digests of the image's layers, lowest first.
func (p *pair) layers() (digests []string) {
	GinkgoHelper()
	Expect(images.Walk(p.image, func(b images.Blob) error {
		if b.MediaType.IsLayer() {
			digests = append(digests, b.Digest.String())
		}
		return nil
	})).To(Succeed())
	return digests
}

// topSnapshot is the name of the snapshot that containers of the image begin with.
func (p *pair) topSnapshot() string {
	GinkgoHelper()
	config, err := p.image.(v1.Image).ConfigFile()
	Expect(err).NotTo(HaveOccurred())
	var diffIDs []digest.Digest
	for _, id := range config.RootFS.DiffIDs {
		diffIDs = append(diffIDs, digest.Digest(id.String()))
	}
	return identity.ChainID(diffIDs).String()
}

// sizes are the sizes of the blobs by digest.
func (p *pair) sizes() map[string]int64 {
	sizes := map[string]int64{}
	_ = images.Walk(p.image, func(b images.Blob) error {
		sizes[b.Digest.String()] = b.Size
		return nil
	})
	return sizes
}

// lose deletes content that an image needs.
func lose(ctx context.Context, d string) {
	GinkgoHelper()
	Expect(direct.ContentStore().Delete(ctx, digest.Digest(d))).To(Succeed())
	collectGarbage(ctx) // the content itself goes with it
}

// collectGarbage has containerd delete what nothing needs.
func collectGarbage(ctx context.Context) {
	GinkgoHelper()
	lease, err := direct.LeasesService().Create(ctx, leases.WithRandomID())
	Expect(err).NotTo(HaveOccurred())
	Expect(direct.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)).To(Succeed())
}

func pull(ctx context.Context, runtime *containerd.Runtime, req nodeagent.PullRequest) (nodeagent.Result, error) {
	return runtime.Pull(ctx, req, func(nodeagent.Progress) {})
}

func present(ctx context.Context, runtime *containerd.Runtime, p *pair) bool {
	GinkgoHelper()
	presence, err := runtime.Check(ctx, p.ref, p.digest)
	Expect(err).NotTo(HaveOccurred())
	return presence.Present
}
