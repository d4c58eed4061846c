// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("What a tag means", func() {
	It("believes the registry rather than a mirror about what a tag means", func(ctx context.Context) {
		p := newPair("fresh")
		p.configure("resolve")
		stale, err := images.Image(images.Options{Layers: images.Layers("stale", 1, images.KiB)})
		Expect(err).NotTo(HaveOccurred())
		Expect(p.mirror.Push(p.repository+":v1", stale)).To(Succeed())
		runtime := start(options())
		Expect(pull(ctx, runtime, p.request(seed))).To(HaveField("Digest", p.digest))
		Expect(present(ctx, runtime, p)).To(BeTrue())

		By("asking the registry one question in another pull")
		p.registry.Reset()
		Expect(pull(ctx, runtime, p.request(seed))).To(HaveField("Source", v1alpha1.SourceLocal))
		requests := p.registry.Requests()
		Expect(requests).To(HaveLen(1))
		Expect(requests[0]).To(And(HaveField("Method", http.MethodHead), HaveField("UserAgent", "sluice-agent/test")))
	}, SpecTimeout(specTimeout))

	It("asks the registry as hosts.toml says it is reached, where that stands beside the mirror without a server line", func(ctx context.Context) {
		p := newPair("beside")
		stale, err := images.Image(images.Options{Layers: images.Layers("stale beside", 1, images.KiB)})
		Expect(err).NotTo(HaveOccurred())
		Expect(p.mirror.Push(p.repository+":v1", stale)).To(Succeed())
		hosts(p.registry.Host(), "[host.%q]\n[host.%q]\n", p.mirror.URL(), p.registry.URL())
		Expect(pull(ctx, start(options()), p.request(seed))).To(HaveField("Digest", p.digest))
	}, SpecTimeout(specTimeout))

	It("takes no mirror's answer for the registry's, also where the registry does not answer", func(ctx context.Context) {
		p := newPair("airgapped")
		p.configure("resolve")
		Expect(p.registry.CutOff(upstream.Refuse)).To(Succeed())
		_, err := pull(ctx, start(options()), p.request(seed))
		Expect(err).To(MatchError(nodeagent.ErrRegistryUnavailable))

		By("naming the mirror as one whose answers count as the registry's")
		opts := options()
		opts.UpstreamHosts = []string{p.mirror.Host()}
		Expect(pull(ctx, start(opts), p.request(seed))).To(HaveField("Digest", p.digest))
	}, SpecTimeout(specTimeout))

	It("has containerd ask a registry that only containerd can reach", func(ctx context.Context) {
		p := newPair("daemon-only")
		private, err := upstream.New(upstream.Options{TLS: true})
		Expect(err).NotTo(HaveOccurred())
		Expect(private.Start(machines.GatewayIP + ":0")).To(Succeed())
		DeferCleanup(private.Close)
		Expect(private.Push(p.repository+":v1", p.image)).To(Succeed())
		stale, err := images.Image(images.Options{Layers: images.Layers("stale daemon-only", 1, images.KiB)})
		Expect(err).NotTo(HaveOccurred())
		Expect(p.mirror.Push(p.repository+":v1", stale)).To(Succeed())
		// The file of the authority is on the node alone, as where k3s puts it.
		Expect(os.WriteFile(filepath.Join(filepath.Dir(node.ContentDir), "private-ca.crt"), private.CAPEM(), 0o600)).To(Succeed())
		hosts(private.Host(), "[host.%q]\n[host.%q]\nca = '/var/lib/containerd/private-ca.crt'\n", p.mirror.URL(), private.URL())
		private.Protect("team/private", &upstream.Auth{Users: map[string]string{"robot": "hunter2"}})
		Expect(private.Push("team/private:v1", p.image)).To(Succeed())
		runtime := start(options())
		request := func(image string) nodeagent.PullRequest {
			ref, err := imageref.Parse(private.Host() + "/" + image)
			Expect(err).NotTo(HaveOccurred())
			return nodeagent.PullRequest{Ref: ref, Policy: seed}
		}

		Expect(pull(ctx, runtime, request("team/app:v1"))).To(HaveField("Digest", p.digest))
		_, err = pull(ctx, runtime, request("team/app:unknown"))
		Expect(err).To(MatchError(nodeagent.ErrImageNotFound))
		_, err = pull(ctx, runtime, request("team/private:v1"))
		Expect(err).To(MatchError(nodeagent.ErrUnauthorized))
		allowed := request("team/private:v1")
		allowed.Credentials = []nodeagent.Credential{{Username: "robot", Password: "hunter2"}}
		Expect(pull(ctx, runtime, allowed)).To(HaveField("Digest", p.digest))

		By("leaving nothing behind")
		left, err := direct.ImageService().List(namespaces.WithNamespace(ctx, "sluice"))
		Expect(err).NotTo(HaveOccurred())
		Expect(left).To(BeEmpty())
		files, err := os.ReadDir(filepath.Join(options().ScratchPath, "hosts"))
		Expect(err).NotTo(HaveOccurred())
		Expect(files).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("does not take a mirror's 404 for the registry's", func(ctx context.Context) {
		p := newPair("outage")
		p.configure("resolve")
		DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
		Expect(p.registry.CutOff(upstream.Refuse)).To(Succeed())
		_, err := pull(ctx, start(options()), p.request(seed))
		Expect(err).To(MatchError(nodeagent.ErrRegistryUnavailable))
		Expect(err).NotTo(MatchError(nodeagent.ErrImageNotFound))
	}, SpecTimeout(specTimeout))

	DescribeTable("translates the registry's answer",
		func(ctx context.Context, status int, want error) {
			p := newPair("answers")
			DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
			DeferCleanup(p.registry.Inject(upstream.Any, 0, upstream.Answer(status)))
			_, err := pull(ctx, start(options()), p.request(seed))
			Expect(err).To(MatchError(want))
		},
		Entry("401", 401, nodeagent.ErrUnauthorized, SpecTimeout(specTimeout)),
		Entry("403", 403, nodeagent.ErrUnauthorized, SpecTimeout(specTimeout)),
		Entry("404", 404, nodeagent.ErrImageNotFound, SpecTimeout(specTimeout)),
		Entry("429", 429, nodeagent.ErrRegistryUnavailable, SpecTimeout(specTimeout)),
		Entry("500", 500, nodeagent.ErrRegistryUnavailable, SpecTimeout(specTimeout)),
	)
})
