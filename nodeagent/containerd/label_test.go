// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"strings"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/typeurl/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/runtimetest"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("What a peer commits", func() {
	It("has the label of its source at the commit, because Spegel advertises no blob that is labelled later", func(ctx context.Context) {
		p := newPair("labelled")
		image, err := images.Image(images.Options{Layers: images.Layers("labelled", 4, images.KiB)})
		Expect(err).NotTo(HaveOccurred())
		index, err := images.Index(image)
		Expect(err).NotTo(HaveOccurred())
		Expect(p.mirror.Push(p.repository+":v1", index)).To(Succeed())
		var blobs []digest.Digest
		Expect(images.Walk(index, func(b images.Blob) error {
			blobs = append(blobs, digest.Digest(b.Digest.String()))
			return nil
		})).To(Succeed())
		manifest := blobs[len(blobs)-2]
		p.digest = blobs[len(blobs)-1]
		// The index waits for its manifest for longer than Spegel waits for a label.
		p.mirror.Inject(upstream.Of(manifest.String()), 1, upstream.Answer(404))
		created := watchCreated(ctx)

		began := time.Now()
		Expect(pull(ctx, start(options()), p.request(peer))).To(HaveField("Digest", p.digest))

		Expect(time.Since(began)).To(BeNumerically(">", 5*time.Second), "the manifest was missed once")
		label := labels.LabelDistributionSource + "." + machines.GatewayIP
		for range blobs {
			var c runtimetest.Creation
			Eventually(ctx, created).Should(Receive(&c))
			Expect(blobs).To(ContainElement(c.Digest))
			Expect(c.Labels).To(HaveKeyWithValue(label, p.repository), c.Digest.String())
		}
	}, SpecTimeout(specTimeout))
})

var _ = Describe("What a seed that fails has received", func() {
	It("is told to the mirror, so that no other seed fetches it again", func(ctx context.Context) {
		p := newPair("told")
		DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
		layers := p.layers()
		DeferCleanup(p.registry.Inject(upstream.Of(layers[1]), 0, upstream.Answer(404)))
		created := watchCreated(ctx)
		_, err := pull(ctx, start(options()), p.request(seed))
		Expect(err).To(HaveOccurred())

		// Which of the other layers were there when one failed is a matter of luck.
		received := map[digest.Digest]bool{}
		for d := range p.sizes() {
			if _, err := direct.ContentStore().Info(ctx, digest.Digest(d)); err == nil {
				received[digest.Digest(d)] = true
			}
		}
		Expect(received).To(HaveKey(p.digest), "the manifest comes before the layers")
		label := labels.LabelDistributionSource + "." + machines.GatewayIP
		told := map[digest.Digest]bool{}
		Eventually(ctx, func() map[digest.Digest]bool {
			select {
			case c := <-created:
				if c.Labels[label] == p.repository {
					told[c.Digest] = true
				}
			default:
			}
			return told
		}).Should(Equal(received))
	}, SpecTimeout(specTimeout))
})

// watchCreated looks up each blob at the event that it was created, as Spegel does, until the spec
// ends.
func watchCreated(ctx context.Context) <-chan runtimetest.Creation {
	GinkgoHelper()
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	envelopes, errs := direct.Subscribe(watching, `topic=="/content/create"`)
	_, err := direct.Version(ctx) // once this is answered the daemon has the subscription
	Expect(err).NotTo(HaveOccurred())
	created := make(chan runtimetest.Creation, 100)
	ended := make(chan struct{})
	go func() {
		defer GinkgoRecover()
		defer close(ended)
		for {
			select {
			case envelope := <-envelopes:
				event, err := typeurl.UnmarshalAny(envelope.Event)
				Expect(err).NotTo(HaveOccurred())
				d := digest.Digest(event.(*eventtypes.ContentCreate).Digest)
				info, err := direct.ContentStore().Info(watching, d)
				Expect(err).NotTo(HaveOccurred())
				created <- runtimetest.Creation{Digest: d, Labels: info.Labels}
			case err := <-errs:
				if watching.Err() == nil {
					Expect(err).NotTo(HaveOccurred())
				}
				return
			}
		}
	}()
	DeferCleanup(func() {
		stop()
		<-ended
	})
	return created
}

// unlabel takes the labels of their sources from a blob.
func unlabel(d digest.Digest) {
	GinkgoHelper()
	ctx := context.Background()
	info, err := direct.ContentStore().Info(ctx, d)
	Expect(err).NotTo(HaveOccurred())
	for label := range info.Labels {
		if !strings.HasPrefix(label, labels.LabelDistributionSource) {
			continue
		}
		bare := content.Info{Digest: d, Labels: map[string]string{label: ""}}
		_, err := direct.ContentStore().Update(ctx, bare, "labels."+label)
		Expect(err).NotTo(HaveOccurred())
	}
}
