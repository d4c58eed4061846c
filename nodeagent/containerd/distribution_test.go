// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("The registry of Distribution", func() {
	It("tells a seed where a tag has moved to", func(ctx context.Context) {
		registry := runDistribution(ctx, distributionOptions{})
		hosts(registry.host, "server = %q\n", registry.url)
		runtime := start(options())
		for _, name := range []string{"first", "second"} {
			p := registry.push(ctx, name)
			Expect(pull(ctx, runtime, p.request(seed))).To(And(HaveField("Digest", p.digest), HaveField("Source", v1alpha1.SourceUpstream)))
			Expect(present(ctx, runtime, p)).To(BeTrue())
		}
		unknown, err := imageref.Parse(registry.host + "/team/app:unknown")
		Expect(err).NotTo(HaveOccurred())
		_, err = pull(ctx, runtime, nodeagent.PullRequest{Ref: unknown, Policy: seed})
		Expect(err).To(MatchError(nodeagent.ErrImageNotFound))
	}, SpecTimeout(specTimeout))

	It("serves a seed by HTTPS with an authority of its own, and with a password", func(ctx context.Context) {
		registry := runDistribution(ctx, distributionOptions{private: true})
		Expect(os.MkdirAll(filepath.Join(node.CertsDir, registry.host), 0o755)).To(Succeed())
		Expect(os.WriteFile(filepath.Join(node.CertsDir, registry.host, "own.pem"), registry.authority, 0o600)).To(Succeed())
		hosts(registry.host, "server = %q\nca = 'own.pem'\n", registry.url)
		p, runtime := registry.push(ctx, "private"), start(options())
		req := p.request(seed)
		_, err := pull(ctx, runtime, req)
		Expect(err).To(MatchError(nodeagent.ErrUnauthorized))
		req.Credentials = []nodeagent.Credential{{Username: user, Password: "wrong"}}
		_, err = pull(ctx, runtime, req)
		Expect(err).To(MatchError(nodeagent.ErrUnauthorized))
		req.Credentials = append(req.Credentials, nodeagent.Credential{Username: user, Password: password})
		Expect(pull(ctx, runtime, req)).To(And(HaveField("Digest", p.digest), HaveField("Source", v1alpha1.SourceUpstream)))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("A pull-through cache of Distribution", func() {
	It("tells a seed where a tag has moved to, where it is the only way out, and then what it heard last", func(ctx context.Context) {
		registry := runDistribution(ctx, distributionOptions{})
		cache := runDistribution(ctx, distributionOptions{cacheOf: registry.url})
		hosts(registry.host, "server = 'http://127.0.0.1:9'\n[host.%q]\n", cache.url)
		opts := options()
		opts.UpstreamHosts = []string{cache.host}
		runtime := start(opts)
		var p *pair
		for _, name := range []string{"old", "new"} {
			p = registry.push(ctx, name)
			Expect(pull(ctx, runtime, p.request(seed))).To(And(HaveField("Digest", p.digest), HaveField("Source", v1alpha1.SourceUpstream)))
		}
		Expect(registry.asked(agent)).To(BeEmpty())
		Expect(registry.asked("containerd/")).To(BeEmpty())

		By("asking it while the registry is away")
		registry.end()
		Expect(pull(ctx, runtime, p.request(seed))).To(HaveField("Digest", p.digest))
	}, SpecTimeout(specTimeout))

	It("serves peers each blob, which it fetches once", func(ctx context.Context) {
		registry := runDistribution(ctx, distributionOptions{})
		cache := runDistribution(ctx, distributionOptions{cacheOf: registry.url})
		p := registry.push(ctx, "cached")
		nodes := machines.Nodes()[:2]
		for _, n := range nodes {
			Expect(n.WriteHostsTOML(registry.host, fmt.Sprintf("server = %q\n[host.%q]\n", registry.url, cache.url))).To(Succeed())
		}
		req := helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: peer}
		Expect(onNode(ctx, nodes[0], req)).To(Equal("Mirror"))
		content := []string{"/v2/team/app/manifests/" + p.digest.String()}
		for blob := range p.sizes() {
			if blob != p.digest.String() {
				content = append(content, "/v2/team/app/blobs/"+blob)
			}
		}
		Eventually(ctx, func() []string { return cache.asked(agent) }).Should(ConsistOf(content))
		Eventually(ctx, func() []string { return registry.asked("Go-http-client/") }).Should(ConsistOf(content), "by the cache")
		Expect(registry.asked(agent)).To(BeEmpty())

		By("asking it from another node, while the registry is away")
		registry.end()
		Expect(onNode(ctx, nodes[1], req)).To(Equal("Mirror"))
	}, SpecTimeout(specTimeout))

	It("fetches a blob once for each peer that asks meanwhile, so that it is better an upstream than a mirror", func(ctx context.Context) {
		p := newPair("at once")
		cache := runDistribution(ctx, distributionOptions{cacheOf: p.registry.URL()})
		p.registry.SetRate(2 * images.MiB)
		var all sync.WaitGroup
		for _, n := range machines.Nodes() {
			Expect(n.WriteHostsTOML(p.registry.Host(), fmt.Sprintf("server = %q\n[host.%q]\n", p.registry.URL(), cache.url))).To(Succeed())
			all.Go(func() {
				defer GinkgoRecover()
				Expect(onNode(ctx, n, helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: peer})).To(Equal("Mirror"))
			})
		}
		all.Wait()
		Expect(p.registry.Requests().Where(upstream.Blobs).Tallies()).To(ContainElement(HaveField("Complete", BeNumerically(">", 1))))
	}, SpecTimeout(specTimeout))
})
