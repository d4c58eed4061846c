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
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("A seed's mirrors", func() {
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
		// As the agent ends it. A deadline would be containerd's too, which may say so before the cause is there.
		first, end := context.WithCancelCause(ctx)
		defer time.AfterFunc(5*time.Second, func() { end(nodeagent.ErrNoProgress) }).Stop()
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
})

var _ = Describe("A peer's mirrors", func() {
	It("waits for a mirror that comes up after the agent, as on a new node", func(ctx context.Context) {
		p := newPair("late")
		Expect(p.mirror.CutOff(upstream.Refuse)).To(Succeed())
		runtime, pulled := pullOnNewNode(ctx, p)
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
		_, pulled := pullOnNewNode(ctx, p)
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
})

var _ = Describe("A peer's mirror that is not Spegel", func() {
	It("serves those that it gives a token, without credentials", func(ctx context.Context) {
		p := newPair("token")
		p.mirror.Protect(p.repository, &upstream.Auth{Scheme: upstream.Bearer, Anonymous: true})
		Expect(pull(ctx, start(options()), p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
		Expect(p.registry.Connections()).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("is given up soon if it wants a password", func(ctx context.Context) {
		p := newPair("password")
		p.mirror.Protect(p.repository, &upstream.Auth{Users: map[string]string{"robot": "c0rrect"}})
		_, err := pull(ctx, start(options()), p.request(peer))
		Expect(err).To(And(MatchError(nodeagent.ErrNotOnMirror), MatchError(ContainSubstring("refuses with status 401"))))
		Expect(p.registry.Connections()).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("may send the peer to its storage, if an administrator has named that", func(ctx context.Context) {
		p := newPair("storage")
		front := listenOnGateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, p.mirror.URL()+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		}))
		hosts(p.registry.Host(), "server = %q\n[host.%q]\n", p.registry.URL(), front)
		_, err := pull(ctx, start(options()), p.request(peer))
		Expect(err).To(And(MatchError(nodeagent.ErrNotOnMirror), MatchError(ContainSubstring("name it in --mirror-redirect-hosts"))))
		Expect(p.mirror.Connections()).To(BeEmpty())

		opts := options()
		opts.MirrorRedirectHosts = []string{p.mirror.Host()}
		Expect(pull(ctx, start(opts), p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
		Expect(p.registry.Connections()).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("may know no Range: what was there already comes again", func(ctx context.Context) {
		p := newPair("no-range")
		broken := p.layers()[0]
		remove := p.mirror.Inject(upstream.Of(broken), 1, upstream.ResetAfter(images.MiB/2))
		DeferCleanup(remove)
		front := inFrontOf(p.mirror, func(r *http.Request) { r.Header.Del("Range") })
		hosts(p.registry.Host(), "server = %q\n[host.%q]\n", p.registry.URL(), front)
		var size int64
		for _, bytes := range p.sizes() {
			size += bytes
		}
		Expect(pull(ctx, start(options()), p.request(peer))).To(And(
			HaveField("Source", v1alpha1.SourceMirror), HaveField("PulledBytes", size)))
		Expect(p.mirror.Requests().Where(upstream.Of(broken))).To(HaveLen(2))
	}, SpecTimeout(specTimeout))

	DescribeTable("is passed over for the next one, for all blobs, after one failure",
		func(ctx context.Context, name string, bad http.HandlerFunc) {
			p := newPair(name)
			var asked atomic.Int32
			first := listenOnGateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") {
					asked.Add(1)
				}
				bad(w, r)
			}))
			hosts(p.registry.Host(), "server = %q\n[host.%q]\n[host.%q]\n", p.registry.URL(), first, p.mirror.URL())
			Expect(pull(ctx, start(options()), p.request(peer))).To(HaveField("Source", v1alpha1.SourceMirror))
			Expect(asked.Load()).To(BeZero(), "its manifest had shown what it is like")
			Expect(p.registry.Connections()).To(BeEmpty())
		},
		Entry("one that says OK and then nothing", "stalls", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, SpecTimeout(specTimeout)),
		Entry("one that sends something else", "something-else",
			func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("garbage")) }, SpecTimeout(specTimeout)),
	)
})

// inFrontOf starts a server that changes each request and passes it on.
func inFrontOf(server *upstream.Server, change func(*http.Request)) string {
	GinkgoHelper()
	target, err := url.Parse(server.URL())
	Expect(err).NotTo(HaveOccurred())
	proxy := httputil.NewSingleHostReverseProxy(target)
	return listenOnGateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		change(r)
		proxy.ServeHTTP(w, r)
	}))
}

// pullOnNewNode pulls as a peer whose agent has just begun.
func pullOnNewNode(ctx context.Context, p *pair) (*containerd.Runtime, <-chan nodeagent.Result) {
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
	return runtime, pulled
}

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
