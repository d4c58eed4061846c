// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

const specTimeout = 2 * time.Minute

func imageService() cri.ImageServiceClient {
	return cri.NewImageServiceClient(direct.Conn().(grpc.ClientConnInterface))
}

// status is what CRI answers the kubelet about an image; nil if it is not there.
func status(ctx context.Context, name string) *cri.Image {
	GinkgoHelper()
	answer, err := imageService().ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	Expect(err).NotTo(HaveOccurred())
	return answer.Image
}

var _ = Describe("CRI", func() {
	for _, policy := range []v1alpha1.RegistryPolicy{v1alpha1.RegistryPolicyDefault, v1alpha1.RegistryPolicyMirror} {
		It("finds the image by tag, digest and id, and sees its pin: "+string(policy), func(ctx context.Context) {
			p := newPair("cri-" + string(policy))
			runtime := start(options())
			Expect(pull(ctx, runtime, p.request(policy))).To(HaveField("Digest", p.digest))

			names := p.ref.Names(p.digest)
			for _, name := range names {
				Eventually(ctx, func() *cri.Image { return status(ctx, name) }).Should(And(
					HaveField("RepoTags", ConsistOf(names[0])),
					HaveField("RepoDigests", ConsistOf(names[1])),
					HaveField("Pinned", BeTrue()),
				), name)
			}
			id := status(ctx, names[0]).Id
			byID, _ := record(id)
			Expect(byID.Digest).To(Equal(p.digest), "the name that CRI gives the content it runs")
			Expect(status(ctx, id)).NotTo(BeNil())

			By("removing the pin")
			Expect(runtime.Retain(ctx, nil)).To(Succeed())
			Eventually(ctx, func() *cri.Image { return status(ctx, names[0]) }).Should(HaveField("Pinned", BeFalse()))

			By("having the kubelet's garbage collection delete it")
			_, err := imageService().RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
			Expect(err).NotTo(HaveOccurred())
			presence, err := runtime.Check(ctx, p.ref, p.digest)
			Expect(err).NotTo(HaveOccurred())
			Expect(presence.Present).To(BeFalse())
		}, SpecTimeout(specTimeout))
	}

	It("pulls while a peer waits for the mirror, and the peer takes the blob that it brought", func(ctx context.Context) {
		p := newPair("cri-ahead")
		missing := p.layers()[1]
		DeferCleanup(p.mirror.Inject(upstream.Of(missing), 0, upstream.Answer(404)))
		runtime := start(options())
		waiting := make(chan error, 1)
		go func() {
			_, err := runtime.Pull(ctx, p.request(v1alpha1.RegistryPolicyMirror), func(nodeagent.Progress) {})
			waiting <- err
		}()
		Eventually(ctx, func() int { return len(p.mirror.Requests().Where(upstream.Of(missing))) }).Should(BeNumerically(">", 0))

		_, err := imageService().PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: p.ref.String()}})
		Expect(err).NotTo(HaveOccurred())
		Eventually(ctx, waiting).Should(Receive(BeNil()))
		Expect(p.registry.Requests().Where(upstream.Of(missing), upstream.Blobs)).To(HaveLen(1), "the kubelet's own fetch")
	}, SpecTimeout(specTimeout))

	It("keeps a moved tag's former image until nothing runs of it", func(ctx context.Context) {
		p := newPair("cri-moved")
		runtime := start(options())
		Expect(pull(ctx, runtime, p.request(v1alpha1.RegistryPolicyMirror))).To(HaveField("Digest", p.digest))
		former := status(ctx, p.ref.String()).Id
		p.push("cri-moved-2", 2, images.KiB)
		Expect(pull(ctx, runtime, p.request(v1alpha1.RegistryPolicyMirror))).To(HaveField("Digest", p.digest))
		Eventually(ctx, func() string { return status(ctx, p.ref.String()).Id }).ShouldNot(Equal(former))
		Expect(status(ctx, former)).NotTo(BeNil())
	}, SpecTimeout(specTimeout))
})
