// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

const (
	seed = v1alpha1.RegistryPolicyDefault
	peer = v1alpha1.RegistryPolicyMirror
)

var _ = Describe("Seed", func() {
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

	It("goes on with a mirror that only containerd can reach, where nothing comes without it", func(ctx context.Context) {
		p := newPair("cut-off")
		// The agent's own requests are never answered. The registry is away.
		target, err := url.Parse(p.mirror.URL())
		Expect(err).NotTo(HaveOccurred())
		honest := httputil.NewSingleHostReverseProxy(target)
		gate := listenOnGateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.UserAgent(), "sluice-agent/") {
				<-r.Context().Done()
				return
			}
			honest.ServeHTTP(w, r)
		}))
		hosts(p.registry.Host(), "server = %q\n[host.%q]\ncapabilities = ['pull', 'resolve']\n", p.registry.URL(), gate)
		Expect(p.registry.CutOff(upstream.Refuse)).To(Succeed())
		req := p.request(seed)
		req.Digest = p.digest
		Expect(pull(ctx, start(options()), req)).To(HaveField("Digest", p.digest))
	}, SpecTimeout(specTimeout))

	It("leaves out a mirror that hangs as soon as it is asked for content, after a pull that received nothing", func(ctx context.Context) {
		p := newPair("stuck")
		stuck := listenOnGateway(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/team/") {
				<-r.Context().Done()
			}
		}))
		hosts(p.registry.Host(), "server = %q\n[host.%q]\ncapabilities = ['pull']\n", p.registry.URL(), stuck)
		req, runtime := p.request(seed), start(options())
		req.Digest = p.digest
		first, cancel := context.WithTimeoutCause(ctx, 5*time.Second, nodeagent.ErrNoProgress) // as the agent ends it
		defer cancel()
		_, err := pull(first, runtime, req)
		Expect(err).To(HaveOccurred())
		Expect(pull(ctx, runtime, req)).To(HaveField("Source", v1alpha1.SourceUpstream))
	}, SpecTimeout(specTimeout))

	It("gets a manifest from a mirror that answers the first of several requests only, as Spegel often does", func(ctx context.Context) {
		p := newPair("once")
		target, err := url.Parse(p.mirror.URL())
		Expect(err).NotTo(HaveOccurred())
		honest := httputil.NewSingleHostReverseProxy(target)
		var asked atomic.Int32
		spegel := listenOnGateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, p.digest.String()) && asked.Add(1) > 1 {
				http.NotFound(w, r)
				return
			}
			honest.ServeHTTP(w, r)
		}))
		hosts(p.registry.Host(), "server = %q\n[host.%q]\ncapabilities = ['pull']\n", p.registry.URL(), spegel)
		req := p.request(seed)
		req.Digest = p.digest
		Expect(pull(ctx, start(options()), req)).To(HaveField("Digest", p.digest))
		Expect(asked.Load()).To(BeNumerically(">", 1))
		Expect(p.registry.Requests().Tallies()).To(HaveEach(HaveField("Complete", BeZero())), "nothing was fetched from the registry")
	}, SpecTimeout(specTimeout))

	It("leaves out a mirror that accepts connections and answers nothing", func(ctx context.Context) {
		p := newPair("hanging")
		Expect(p.mirror.CutOff(upstream.Hang)).To(Succeed())
		DeferCleanup(p.mirror.Restore)
		runtime := start(options())
		Expect(pull(ctx, runtime, p.request(seed))).To(HaveField("Source", v1alpha1.SourceUpstream))
		Expect(present(ctx, runtime, p)).To(BeTrue())
		Expect(p.mirror.Connections()).To(HaveLen(1), "it was asked once, and not for each blob")
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

	It("waits for a mirror that comes up after the agent, as on a new node", func(ctx context.Context) {
		p := newPair("late")
		Expect(p.mirror.CutOff(upstream.Refuse)).To(Succeed())
		opts := options()
		opts.MirrorStartTimeout = time.Minute
		runtime := start(opts)
		pulled := make(chan nodeagent.Result, 1)
		go func() {
			defer GinkgoRecover()
			result, err := pull(ctx, runtime, p.request(peer))
			Expect(err).NotTo(HaveOccurred())
			pulled <- result
		}()
		// It gives up on one that was there after five tries, one a second.
		Consistently(ctx, pulled).WithTimeout(8 * time.Second).ShouldNot(Receive())
		Expect(p.mirror.Restore()).To(Succeed())
		Eventually(ctx, pulled).Should(Receive(HaveField("Source", v1alpha1.SourceMirror)))

		By("being away for the second time")
		Expect(p.mirror.CutOff(upstream.Refuse)).To(Succeed())
		p.push("late-again", 1, images.KiB)
		_, err := pull(ctx, runtime, p.request(peer))
		Expect(err).To(MatchError(nodeagent.ErrNotOnMirror))
		Expect(p.registry.Connections()).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("waits for a hosts.toml that comes after the agent", func(ctx context.Context) {
		p := newPair("unconfigured")
		hosts(p.registry.Host(), "server = %q\n", p.registry.URL())
		opts := options()
		opts.MirrorStartTimeout = time.Minute
		runtime := start(opts)
		pulled := make(chan nodeagent.Result, 1)
		go func() {
			defer GinkgoRecover()
			result, err := pull(ctx, runtime, p.request(peer))
			Expect(err).NotTo(HaveOccurred())
			pulled <- result
		}()
		Consistently(ctx, pulled).WithTimeout(3 * time.Second).ShouldNot(Receive())
		p.configure("pull")
		Eventually(ctx, pulled).Should(Receive(HaveField("Source", v1alpha1.SourceMirror)))
	}, SpecTimeout(specTimeout))

	It("asks a mirror that answers nothing once, and goes on with the next", func(ctx context.Context) {
		p := newPair("hanging-first")
		second := serve()
		Expect(second.Push(p.repository+":v1", p.image)).To(Succeed())
		Expect(p.mirror.CutOff(upstream.Hang)).To(Succeed())
		DeferCleanup(p.mirror.Restore)
		runtime := start(options())
		_, err := pull(ctx, runtime, p.request(peer))
		Expect(err).To(MatchError(nodeagent.ErrNotOnMirror), "which the controller goes by")
		asked := len(p.mirror.Connections())
		Expect(asked).To(Equal(1), "once, and not once a second")
		hosts(p.registry.Host(), "server = %q\n[host.%q]\n[host.%q]\n", p.registry.URL(), p.mirror.URL(), second.URL())
		Expect(pull(ctx, runtime, p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
		Expect(p.mirror.Connections()).To(HaveLen(asked), "there is another now")
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

// listenOnGateway starts a server that the node reaches, and returns its URL.
func listenOnGateway(handler http.Handler) string {
	GinkgoHelper()
	server := httptest.NewUnstartedServer(handler)
	Expect(server.Listener.Close()).To(Succeed())
	var err error
	server.Listener, err = net.Listen("tcp", machines.GatewayIP+":0")
	Expect(err).NotTo(HaveOccurred())
	server.Start()
	DeferCleanup(server.Close)
	return server.URL
}

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
				watching <- runtime.Watch(ctx, func() { close(connected) }, func(nodeagent.Change) {})
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
			Expect(runtime.Watch(ctx, func() {}, func(nodeagent.Change) {})).To(MatchError(nodeagent.ErrRuntimeUnavailable))
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
