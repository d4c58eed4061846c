// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/distribution"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/install"
	"github.com/sluice-dev/sluice/test/upstream"
)

const (
	// privateRegistry is the name of a registry with an authority of its own, which asks its
	// clients for a certificate.
	privateRegistry = "private.sluice.test"
	// outsideRegistry is a name of the same that nodes and Pods cannot resolve.
	outsideRegistry = "outside.sluice.test"

	agentAsks      = "sluice-agent/"
	containerdAsks = "containerd/"
)

// pullsOverHTTPS are specs of an installation. Each moves a tag, while every node's mirror has what it
// meant before.
func pullsOverHTTPS(upgrade func(ctx context.Context, args ...string) string) {
	var private *privateUpstream

	BeforeAll(func(ctx SpecContext) {
		create(ctx, &v1alpha1.PrefetchPolicy{ObjectMeta: metav1.ObjectMeta{Name: "https"}, Spec: v1alpha1.PrefetchPolicySpec{
			NamespaceSelector:   metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: "default"}},
			AllowedRepositories: []v1alpha1.RepositoryPattern{privateRegistry + "/**", outsideRegistry + "/**"},
		}})
		private = startPrivateUpstream()
	})

	It("asks it what a tag means, with the files beside hosts.toml", func(ctx SpecContext) {
		private.configure(privateRegistry, besideHostsTOML(privateRegistry))
		private.expectFollowed(ctx, privateRegistry, "team/seen", agentAsks)
	})

	It("has containerd ask with files that the agents' Pods do not see", func(ctx SpecContext) {
		private.configure(privateRegistry, outOfSight)
		private.expectFollowed(ctx, privateRegistry, "team/unseen", containerdAsks)
	})

	Context("that only a proxy leads to", func() {
		var proxy string

		BeforeAll(func(ctx SpecContext) {
			proxy = startProxy(outsideRegistry+":443", private.Host())
			private.configure(outsideRegistry, besideHostsTOML(outsideRegistry))
			// It stays so: nothing after this context is asked for over HTTPS.
			for _, node := range site.Cluster.Nodes() {
				node.ContainerdEnvironment = []string{"HTTPS_PROXY=" + proxy}
				node.Containerd.Stop()
				Expect(node.Containerd.Start(ctx)).To(Succeed())
			}
		})

		It("has containerd ask, which alone was given the proxy", func(ctx SpecContext) {
			private.expectFollowed(ctx, outsideRegistry, "team/proxied", containerdAsks)
		})

		It("keeps the old image while nobody gets an answer, and says so", func(ctx SpecContext) {
			p, old := private.prefetch(ctx, outsideRegistry, "team/silent")
			moved := private.push("team/silent:v1", "moved")
			Expect(private.CutOff(upstream.Refuse)).To(Succeed())
			DeferCleanup(private.Restore)
			askAgain(ctx, p)
			Eventually(func(g Gomega) {
				g.Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
				g.Expect(p.Status.Failures).To(ContainElement(HaveField("Reason", v1alpha1.ReasonRegistryUnavailable)))
			}).Should(Succeed())
			Expect(meta.IsStatusConditionFalse(p.Status.Conditions, v1alpha1.ConditionReady)).To(BeTrue(), "%+v", p.Status)
			Expect(p.Status.Images).To(ConsistOf(And(HaveField("Digest", old), HaveField("Refresh", ""))))
			expectOnAllNodes(ctx, p, old)

			Expect(private.Restore()).To(Succeed())
			eventuallyHas(ctx, p, moved)
		})

		It("asks through the proxy, once the agents are given it", func(ctx SpecContext) {
			var kubernetes corev1.Service
			Expect(site.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "kubernetes"}, &kubernetes)).To(Succeed())
			direct := strings.Join([]string{kubernetes.Spec.ClusterIP + "/24", site.Cluster.GatewayIP + "/24", install.Registry}, ",")
			environment, err := json.Marshal([]corev1.EnvVar{{Name: "HTTP_PROXY", Value: proxy}, {Name: "HTTPS_PROXY", Value: proxy}, {Name: "NO_PROXY", Value: direct}})
			Expect(err).NotTo(HaveOccurred())
			upgrade(ctx, "--set-json=agent.extraEnv="+string(environment))
			allReady(ctx)
			private.expectFollowed(ctx, outsideRegistry, "team/through", agentAsks)
		})
	})
}

// privateUpstream is the registry, with the certificates of its clients.
type privateUpstream struct {
	*upstream.Server
	certificate, key []byte
}

func startPrivateUpstream() *privateUpstream {
	GinkgoHelper()
	server, err := upstream.New(upstream.Options{ClientTLS: true, Hosts: []string{privateRegistry, outsideRegistry}})
	Expect(err).NotTo(HaveOccurred())
	Expect(server.Start(net.JoinHostPort(site.Cluster.GatewayIP, "443"))).To(Succeed())
	DeferCleanup(server.Close)
	private := &privateUpstream{Server: server}
	private.certificate, private.key, err = server.ClientPEM()
	Expect(err).NotTo(HaveOccurred())
	return private
}

// besideHostsTOML is a folder below /etc/containerd, of which the agents' Pods see certs.d alone.
func besideHostsTOML(registry string) string { return filepath.Join("certs.d", registry) }

// outOfSight is one that they do not see.
const outOfSight = "keys"

// configure has every node reach the registry by the name, after its mirror, with the files in the
// folder. There is no server line, as where people add a host to a file that names a mirror.
func (p *privateUpstream) configure(name, folder string) {
	GinkgoHelper()
	for _, node := range site.Cluster.Nodes() {
		dir := filepath.Join(node.Dir, "etc/containerd", folder)
		Expect(os.MkdirAll(dir, 0o700)).To(Succeed())
		for file, content := range map[string][]byte{"ca.crt": p.CAPEM(), "client.crt": p.certificate, "client.key": p.key} {
			Expect(os.WriteFile(filepath.Join(dir, file), content, 0o600)).To(Succeed())
		}
		Expect(node.WriteHostsTOML(name, fmt.Sprintf(`[host."%[1]s"]
  capabilities = ["pull", "resolve"]

[host."https://%[2]s"]
  capabilities = ["pull", "resolve"]
  ca = "/etc/containerd/%[3]s/ca.crt"
  client = [["/etc/containerd/%[3]s/client.crt", "/etc/containerd/%[3]s/client.key"]]
`, node.MirrorURL(), name, folder))).To(Succeed())
	}
}

// push has the tag mean an image of that content, and returns its digest.
func (p *privateUpstream) push(ref, content string) string {
	GinkgoHelper()
	image, err := images.Image(images.Options{Layers: images.Layers(ref+" "+content, 3, images.MiB)})
	Expect(err).NotTo(HaveOccurred())
	Expect(p.Push(ref, image)).To(Succeed())
	digest, err := image.Digest()
	Expect(err).NotTo(HaveOccurred())
	return digest.String()
}

// prefetch brings a new image to all nodes, until the spec ends, and returns its digest.
func (p *privateUpstream) prefetch(ctx context.Context, registry, repository string) (prefetch *v1alpha1.ImagePrefetch, digest string) {
	GinkgoHelper()
	digest = p.push(repository+":v1", "old")
	prefetch = newPrefetch(filepath.Base(repository), registry+"/"+repository+":v1")
	create(ctx, prefetch)
	DeferCleanup(func(ctx SpecContext) { Expect(site.Client.Delete(ctx, prefetch)).To(Succeed()) })
	eventuallyHas(ctx, prefetch, digest)
	return prefetch, digest
}

// expectFollowed expects a tag that moves to be followed, by questions of the asker to the registry,
// which sends nothing twice.
func (p *privateUpstream) expectFollowed(ctx context.Context, registry, repository, asker string) {
	GinkgoHelper()
	prefetch, old := p.prefetch(ctx, registry, repository)
	moved := p.push(repository+":v1", "moved")
	for _, node := range site.Cluster.Nodes() {
		Expect(digestOnMirror(ctx, node, registry, repository)).To(Equal(old))
	}
	askAgain(ctx, prefetch)
	eventuallyHas(ctx, prefetch, moved)

	requests := p.Requests().Where(upstream.In(repository))
	tag := func(r upstream.Request) bool { return r.Kind == distribution.Tag }
	Expect(requests.Where(tag)).To(And(HaveLen(2), HaveEach(And(
		HaveField("UserAgent", HavePrefix(asker)), HaveField("Method", http.MethodHead), HaveField("Status", http.StatusOK)))))
	// A question of containerd's may have begun to fetch the manifest.
	Expect(requests.Where(upstream.Blobs).Tallies()).To(And(HaveLen(8), HaveEach(And(HaveField("Complete", 1), HaveField("Partial", 0)))))
}

// askAgain has the tags of a prefetch resolved again.
func askAgain(ctx context.Context, p *v1alpha1.ImagePrefetch) {
	GinkgoHelper()
	patch := client.MergeFrom(p.DeepCopy())
	p.Annotations = map[string]string{v1alpha1.RefreshAnnotation: "again"}
	Expect(site.Client.Patch(ctx, p, patch)).To(Succeed())
}

// eventuallyHas waits until a prefetch is Ready by an answer to its last question, which is the digest. All
// nodes but the one that asked have it from their mirrors.
func eventuallyHas(ctx context.Context, p *v1alpha1.ImagePrefetch, digest string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
		g.Expect(p.Status.Images).To(ConsistOf(HaveField("Refresh", p.Annotations[v1alpha1.RefreshAnnotation])))
		g.Expect(meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady)).To(BeTrue())
	}).Should(Succeed(), func() string { return fmt.Sprintf("%+v", p.Status) })
	Expect(p.Status.Images).To(ConsistOf(And(HaveField("Digest", digest),
		HaveField("ReadyNodes", BeEquivalentTo(len(site.Cluster.Nodes()))), HaveField("UpstreamPulls", BeEquivalentTo(1)))))
	expectOnAllNodes(ctx, p, digest)
}

// expectOnAllNodes expects every node to have the digest under the name of a prefetch's image.
func expectOnAllNodes(ctx context.Context, p *v1alpha1.ImagePrefetch, digest string) {
	GinkgoHelper()
	name := string(p.Spec.Images[0])
	for _, node := range site.Cluster.Nodes() {
		found, err := node.Images(ctx, name)
		Expect(err).NotTo(HaveOccurred())
		Expect(found).To(HaveKeyWithValue(name, HaveField("String()", digest)), node.Name)
	}
}

// digestOnMirror is what the node's mirror says that the tag v1 means.
func digestOnMirror(ctx context.Context, node *cluster.Node, registry, repository string) string {
	GinkgoHelper()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, node.MirrorURL()+"/v2/"+repository+"/manifests/v1?ns="+registry, nil)
	Expect(err).NotTo(HaveOccurred())
	response, err := http.DefaultClient.Do(request)
	Expect(err).NotTo(HaveOccurred())
	Expect(response.Body.Close()).To(Succeed())
	return response.Header.Get("Docker-Content-Digest")
}
