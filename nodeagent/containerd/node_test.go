// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// helperArgument makes the test's own binary pull on a node, with the node's network and files.
const helperArgument = "pull-on-node"

// helperRequest is what that binary is to pull.
type helperRequest struct {
	Image       string
	Digest      digest.Digest
	Policy      v1alpha1.RegistryPolicy
	MinFreeDisk float64
	Timeout     time.Duration
}

// pullOnNode runs on the node. It prints the source of the content, or the error.
func pullOnNode(argument string) int {
	var req helperRequest
	err := json.Unmarshal([]byte(argument), &req)
	if err == nil {
		err = func() error {
			ref, err := imageref.Parse(req.Image)
			if err != nil {
				return err
			}
			runtime, err := containerd.New(containerd.Options{
				Address: "/run/containerd/containerd.sock", Namespace: namespace, RegistryConfigPath: "/etc/containerd/certs.d", ScratchPath: "/run/sluice",
				MinFreeDisk: req.MinFreeDisk, NoProgressTimeout: time.Minute,
				UserAgent: "sluice-agent/test", Log: logr.Discard(),
			})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(context.Background(), req.Timeout, nodeagent.ErrNoProgress)
			defer cancel()
			result, err := runtime.Pull(ctx, nodeagent.PullRequest{Ref: ref, Digest: req.Digest, Policy: req.Policy}, func(nodeagent.Progress) {})
			if err == nil {
				fmt.Println(result.Source)
			}
			return err
		}()
	}
	if err != nil {
		fmt.Println(err)
	}
	return 0
}

// onNode has a node pull, and returns what pullOnNode printed there.
func onNode(ctx context.Context, n *cluster.Node, req helperRequest) string {
	GinkgoHelper()
	if req.Timeout == 0 {
		req.Timeout = time.Minute
	}
	argument, err := json.Marshal(req)
	Expect(err).NotTo(HaveOccurred())
	output, err := n.Run(ctx, os.Args[0], helperArgument, string(argument))
	Expect(err).NotTo(HaveOccurred())
	return strings.TrimSpace(output)
}

var _ = Describe("On a node", func() {
	It("a peer never asks docker.io, whatever names hosts.toml has for it", func(ctx context.Context) {
		p := newPair("alias")
		hub, plain := listen("443", true), listen("80", false) // all well-known registries, for the node
		hosts("docker.io", `
server = "https://registry-1.docker.io"
[host."https://index.docker.io"]
[host."https://registry-1.docker.io"]
[host."http://docker.io"]
[host.%q]
  capabilities = ["pull"]
`, p.mirror.URL())
		Expect(p.mirror.Push("library/app:v1", p.image)).To(Succeed())
		serve := p.mirror.Inject(upstream.Of(p.layers()[0]), 0, upstream.Answer(404))
		req := helperRequest{Image: "app:v1", Digest: p.digest, Policy: peer, Timeout: 12 * time.Second}
		Expect(onNode(ctx, node, req)).To(ContainSubstring(nodeagent.ErrNotOnMirror.Error()), "with a layer missing")
		serve()
		Expect(onNode(ctx, node, req)).To(Equal("Mirror"))
		Expect(hub.Connections()).To(BeEmpty())
		Expect(plain.Connections()).To(BeEmpty())

		By("pulling as a seed, to see that the listeners notice it")
		req.Digest, req.Policy = digest.FromString("unknown"), seed
		onNode(ctx, node, req)
		Expect(hub.Connections()).NotTo(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("a pull that would fill the disk does not begin", func(ctx context.Context) {
		p := newPair("full")
		p.push("full", 3, 4*images.MiB)
		p.registry.SetRate(2 * images.MiB)
		req := helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: peer, MinFreeDisk: 0.9999}
		Expect(onNode(ctx, node, req)).To(ContainSubstring(nodeagent.ErrInsufficientDisk.Error()))
		Expect(p.mirror.Requests().Where(upstream.Blobs)).To(BeEmpty(), "the manifest alone tells the size")

		DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
		req.Policy = seed
		Expect(onNode(ctx, node, req)).To(ContainSubstring(nodeagent.ErrInsufficientDisk.Error()))
		for _, layer := range p.registry.Requests().Where(upstream.Blobs).Tallies() {
			Expect(layer.Size < images.MiB || layer.Complete == 0).To(BeTrue(), "the seed stopped before %s was complete", layer.Digest)
		}
	}, SpecTimeout(specTimeout))

	DescribeTable("an image is unpacked into the snapshotter of CRI, whichever that is",
		func(ctx context.Context, policy v1alpha1.RegistryPolicy, want v1alpha1.ImageSource) {
			n := machines.Nodes()[2]
			p := newPair("native-" + string(policy))
			Expect(n.WriteHostsTOML(p.registry.Host(), fmt.Sprintf(`
server = %q
[host.%q]
  capabilities = ["pull"]
`, p.registry.URL(), p.mirror.URL()))).To(Succeed())
			req := helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: policy}
			Expect(onNode(ctx, n, req)).To(Equal(string(want)))
			Expect(onNode(ctx, n, req)).To(Equal(string(v1alpha1.SourceLocal)), "nothing is missing")
			snapshots, err := n.Ctr(ctx, "snapshots", "--snapshotter", "native", "list")
			Expect(err).NotTo(HaveOccurred())
			Expect(snapshots).To(ContainSubstring(p.topSnapshot()))
			_, err = n.Ctr(ctx, "snapshots", "--snapshotter", "overlayfs", "info", p.topSnapshot())
			Expect(err).To(HaveOccurred(), "nobody would use it there")
		},
		Entry("by a seed, whose transfer service does not unpack there", seed, v1alpha1.SourceUpstream, SpecTimeout(specTimeout)),
		Entry("by a peer", peer, v1alpha1.SourceMirror, SpecTimeout(specTimeout)),
	)

	It("peers follow a seed that is still pulling, and each blob leaves the registry once", func(ctx context.Context) {
		p := newPair("following")
		p.push("following", 6, images.MiB)
		for _, n := range machines.Nodes() {
			Expect(n.WriteHostsTOML(p.registry.Host(), fmt.Sprintf(`
server = %q
[host.%q]
  capabilities = ["pull"]
`, p.registry.URL(), n.MirrorURL()))).To(Succeed())
		}
		p.registry.SetRate(images.MiB)
		began := time.Now()
		var all sync.WaitGroup
		for i, n := range machines.Nodes() {
			req, want := helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: peer}, "Mirror"
			if i == 0 {
				req.Policy, want = seed, "Upstream"
			}
			all.Go(func() {
				defer GinkgoRecover()
				Expect(onNode(ctx, n, req)).To(Equal(want), n.Name)
				GinkgoWriter.Printf("%s: %s after %v\n", n.Name, want, time.Since(began))
			})
		}
		all.Wait()
		Expect(p.registry.Requests().Clients()).To(ConsistOf(machines.Nodes()[0].IP))
		for _, t := range p.registry.Requests().Tallies() {
			Expect(t.Complete).To(Equal(1), t.Digest)
			Expect(t.Partial).To(BeZero(), t.Digest)
		}
	}, SpecTimeout(specTimeout))
})

// listen starts a registry on a port of the gateway.
func listen(port string, tls bool) *upstream.Server {
	GinkgoHelper()
	server, err := upstream.New(upstream.Options{TLS: tls})
	Expect(err).NotTo(HaveOccurred())
	Expect(server.Start(machines.GatewayIP + ":" + port)).To(Succeed())
	DeferCleanup(server.Close)
	return server
}
