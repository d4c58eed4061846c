// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

const (
	seed = v1alpha1.RegistryPolicyDefault
	peer = v1alpha1.RegistryPolicyMirror
)

var _ = Describe("Seed", func() {
	It("fetches layers of which only the snapshots are left", func(ctx context.Context) {
		p := newPair("outlived")
		runtime := start(options())
		Expect(pull(ctx, runtime, p.request(seed))).To(HaveField("Digest", p.digest))
		lose(ctx, p.layers()[1])
		Expect(present(ctx, runtime, p)).To(BeFalse())
		Expect(pull(ctx, runtime, p.request(seed))).To(HaveField("PulledBytes", BeNumerically(">", images.MiB)))
		Expect(present(ctx, runtime, p)).To(BeTrue())
	}, SpecTimeout(specTimeout))

	It("shows its credentials also to a mirror that asks for some, as the kubelet does", func(ctx context.Context) {
		p := newPair("cache")
		robot := &upstream.Auth{Users: map[string]string{"robot": "hunter2"}}
		p.registry.Protect(p.repository, robot)
		p.mirror.Protect(p.repository, robot)
		req := p.request(seed)
		req.Credentials = []nodeagent.Credential{{Username: "robot", Password: "hunter2"}}
		Expect(pull(ctx, start(options()), req)).To(HaveField("Digest", p.digest))
		Expect(p.registry.Requests().Where(upstream.Blobs)).To(BeEmpty())
		Expect(p.mirror.Requests().Where(upstream.Blobs)).NotTo(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("resumes a blob in the middle after a restart of the agent", func(ctx context.Context) {
		p := newPair("seed-resume")
		p.push("seed-resume", 3, 4*images.MiB) // containerd writes a MiB at a time
		DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
		layers := p.layers()
		stalled := p.registry.Inject(upstream.Of(layers[2]), 0, upstream.StallAfter(5*images.MiB/2))
		first := start(options())
		killed, kill := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			_, err := pull(killed, first, p.request(seed))
			ended <- err
		}()
		Eventually(ctx, func() int64 {
			status, err := direct.ContentStore().Status(ctx, "layer-"+layers[2])
			if err != nil {
				return 0
			}
			return status.Offset
		}).Should(BeNumerically(">=", 2*images.MiB))
		for _, whole := range layers[:2] { // so that no sent byte is still on the way
			Eventually(ctx, func() error {
				_, err := direct.ContentStore().Info(ctx, digest.Digest(whole))
				return err
			}).Should(Succeed())
		}
		kill()
		Eventually(ctx, ended).Should(Receive(HaveOccurred()))
		stalled()

		Expect(pull(ctx, start(options()), p.request(seed))).To(HaveField("Digest", p.digest))
		for _, t := range p.registry.Requests().Where(upstream.Blobs).Tallies() {
			Expect(t.Bytes).To(BeNumerically("<", t.Size*3/2), "%s was sent twice", t.Digest)
		}
		again := p.registry.Requests().Where(upstream.Of(layers[2]))
		Expect(again[len(again)-1].Offset).To(BeNumerically(">", 0))
	}, SpecTimeout(specTimeout))

	It("reports the bytes on the way", func(ctx context.Context) {
		p := newPair("bytes")
		p.push("bytes", 2, 4*images.MiB)
		p.registry.SetRate(4 * images.MiB)
		DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
		seen := []nodeagent.Progress{}
		result, err := start(options()).Pull(ctx, p.request(seed), func(progress nodeagent.Progress) { seen = append(seen, progress) })
		Expect(err).NotTo(HaveOccurred())
		Expect(seen[0]).To(Equal(nodeagent.Progress{Digest: p.digest}), "the digest first")
		Expect(seen).To(ContainElement(And(
			HaveField("SizeBytes", result.SizeBytes),
			HaveField("PulledBytes", BeNumerically("~", result.SizeBytes/2, result.SizeBytes*3/8)),
			HaveField("Received", BeFalse()))))
		Expect(seen[len(seen)-1].Received).To(BeTrue(), "at the end nothing is left to receive")
	}, SpecTimeout(specTimeout))
})

var _ = Describe("Peer", func() {
	It("resumes a blob that broke off", func(ctx context.Context) {
		p := newPair("resume")
		layer := p.layers()[1]
		p.mirror.Inject(upstream.Of(layer), 1, upstream.ResetAfter(600*images.KiB))
		runtime := start(options())
		result, err := pull(ctx, runtime, p.request(peer))
		Expect(err).NotTo(HaveOccurred())
		requests := p.mirror.Requests().Where(upstream.Of(layer))
		Expect(requests).To(HaveLen(2))
		Expect(requests[1].Offset).To(BeNumerically(">", 100*images.KiB))
		Expect(requests[1].Time.Sub(requests[0].Time)).To(BeNumerically(">=", 5*time.Second), "a mirror is not asked for a key at once again")
		Expect(result.PulledBytes).To(BeNumerically("~", result.SizeBytes, images.KiB*4), "nothing came twice")
	}, SpecTimeout(specTimeout))

	It("leaves a mirror that went silent, and tries it again", func(ctx context.Context) {
		p := newPair("silent")
		DeferCleanup(p.mirror.Inject(upstream.Of(p.layers()[0]), 1, upstream.StallAfter(100*images.KiB)))
		impatient := options()
		impatient.NoProgressTimeout = time.Second
		Expect(pull(ctx, start(impatient), p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
	}, SpecTimeout(specTimeout))

	It("has progress while another image has all streams", func(ctx context.Context) {
		const streams, rate = 8, images.MiB
		wide, narrow := newPair("wide"), newPair("narrow")
		wide.push("wide", streams, images.MiB)
		wide.mirror.SetRate(rate)
		runtime := start(options())
		first := make(chan error, 1)
		go func() {
			_, err := pull(ctx, runtime, wide.request(peer))
			first <- err
		}()
		Eventually(ctx, func() upstream.Requests {
			return wide.mirror.Requests().Where(upstream.Blobs, func(r upstream.Request) bool { return r.Bytes > 100*images.KiB })
		}).Should(HaveLen(streams), "each of its layers has a stream")

		began := time.Now()
		last, silence := began, time.Duration(0)
		_, err := runtime.Pull(ctx, narrow.request(peer), func(nodeagent.Progress) {
			silence = max(silence, time.Since(last))
			last = time.Now()
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(time.Since(began)).To(BeNumerically(">", 4*time.Second), "it had to wait")
		Expect(silence).To(BeNumerically("<", 3*time.Second))
		Eventually(ctx, first).Should(Receive(BeNil()))
	}, SpecTimeout(specTimeout))

	It("asks one mirror after the other", func(ctx context.Context) {
		p := newPair("second")
		second := serve()
		Expect(second.Push(p.repository+":v1", p.image)).To(Succeed())
		DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
		hosts(p.registry.Host(), `
server = %q
[host.%q]
[host.%q]
`, p.registry.URL(), p.mirror.URL(), second.URL())
		Expect(pull(ctx, start(options()), p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
		Expect(p.registry.Connections()).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("throws away content with the wrong digest", func(ctx context.Context) {
		p := newPair("garbage")
		layer := p.layers()[2]
		lies := lie(p, layer, 1)
		runtime := start(options())
		Expect(pull(ctx, runtime, p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
		Expect(present(ctx, runtime, p)).To(BeTrue())
		Expect(lies.Load()).To(Equal(int32(2)))
	}, SpecTimeout(specTimeout))

	It("gives up on a mirror that always sends the wrong content", func(ctx context.Context) {
		p := newPair("liar")
		layer := p.layers()[2]
		lies := lie(p, layer, 1000)
		var last nodeagent.Progress
		_, err := start(options()).Pull(ctx, p.request(peer), func(progress nodeagent.Progress) { last = progress })
		Expect(err).To(MatchError(nodeagent.ErrNotOnMirror))
		Expect(err).To(MatchError(ContainSubstring("not what its digest says")))
		Expect(lies.Load()).To(Equal(int32(3)))
		Expect(last.SizeBytes-last.PulledBytes).To(BeNumerically(">", p.sizes()[layer]/2), "bytes that were thrown away do not count")
	}, SpecTimeout(specTimeout))

	It("fetches layers of which only the snapshots are left", func(ctx context.Context) {
		p := newPair("peer-outlived")
		runtime := start(options())
		Expect(pull(ctx, runtime, p.request(peer))).To(HaveField("Digest", p.digest))
		lose(ctx, p.layers()[1])
		Expect(present(ctx, runtime, p)).To(BeFalse())
		Expect(pull(ctx, runtime, p.request(peer))).To(HaveField("PulledBytes", BeNumerically("~", images.MiB, 64*images.KiB)))
		Expect(present(ctx, runtime, p)).To(BeTrue())
	}, SpecTimeout(specTimeout))

	It("gives up at once where the node has no mirror", func(ctx context.Context) {
		p := newPair("none")
		hosts(p.registry.Host(), "server = %q\n", p.registry.URL())
		_, err := pull(ctx, start(options()), p.request(peer))
		Expect(err).To(MatchError(nodeagent.ErrNotOnMirror))
		Expect(p.registry.Connections()).To(BeEmpty())
	}, SpecTimeout(specTimeout))
})

// lie puts a mirror before the pair's that sends zeros for a layer so many times. It returns how
// often that mirror was asked for the layer.
func lie(p *pair, layer string, times int32) *atomic.Int32 {
	GinkgoHelper()
	target, err := url.Parse(p.mirror.URL())
	Expect(err).NotTo(HaveOccurred())
	honest := httputil.NewSingleHostReverseProxy(target)
	asked := &atomic.Int32{}
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, layer) && asked.Add(1) <= times {
			_, _ = w.Write(make([]byte, p.sizes()[layer]))
			return
		}
		honest.ServeHTTP(w, r)
	}))
	DeferCleanup(liar.Close)
	hosts(p.registry.Host(), "server = %q\n[host.%q]\n", p.registry.URL(), liar.URL)
	return asked
}

var _ = Describe("containerd's restart", Serial, func() {
	It("ends the pull at once, and costs no blob that was complete", func(ctx context.Context) {
		for _, policy := range []v1alpha1.RegistryPolicy{seed, peer} {
			By(string(policy))
			p := newPair("restart-" + string(policy))
			from := p.registry
			if policy == peer {
				from = p.mirror
			} else {
				DeferCleanup(p.mirror.Inject(upstream.Any, 0, upstream.Answer(404)))
			}
			layers := p.layers()
			resume := from.Inject(upstream.Of(layers[2]), 0, upstream.StallAfter(images.KiB))
			runtime := start(options())
			watching := make(chan error, 1)
			connected := make(chan struct{})
			go func() {
				watching <- runtime.Watch(ctx, func() { close(connected) }, func(nodeagent.Change) {}, func([]nodeagent.Finding) {})
			}()
			Eventually(ctx, connected).Should(BeClosed())
			pulling := make(chan error, 1)
			go func() {
				_, err := pull(ctx, runtime, p.request(policy))
				pulling <- err
			}()
			for _, complete := range layers[:2] {
				Eventually(ctx, func() error {
					_, err := direct.ContentStore().Info(ctx, digest.Digest(complete))
					return err
				}).Should(Succeed())
			}

			node.Containerd.Kill()
			Eventually(ctx, pulling).WithTimeout(10 * time.Second).Should(Receive(MatchError(nodeagent.ErrRuntimeUnavailable)))
			Eventually(ctx, watching).Should(Receive(MatchError(nodeagent.ErrRuntimeUnavailable)))
			Expect(runtime.Watch(ctx, func() {}, func(nodeagent.Change) {}, func([]nodeagent.Finding) {})).To(MatchError(nodeagent.ErrRuntimeUnavailable))
			resume()
			Expect(node.Containerd.Start(ctx)).To(Succeed())
			Eventually(ctx, func() error {
				_, err := pull(ctx, runtime, p.request(policy))
				return err
			}).Should(Succeed())
			Expect(present(ctx, runtime, p)).To(BeTrue())
			for _, tally := range from.Requests().Where(upstream.Blobs).Tallies() {
				if tally.Digest != layers[2] {
					Expect(tally.Complete+tally.Partial).To(Equal(1), tally.Digest)
				}
			}
		}
	}, SpecTimeout(specTimeout))
})
