// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/apiserver"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

func TestNodeAgent(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Node agent on a real API server")
}

var (
	server *rest.Config
	scheme = runtime.NewScheme()
	admin  client.Client
)

var _ = BeforeSuite(func() {
	ctrl.SetLogger(GinkgoLogr)
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())
	api, err := apiserver.Start()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(api.Stop)
	server = api.Config
	admin, err = client.New(server, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
})

// requestLog records the agent's requests to the API server.
type requestLog struct {
	sync.Mutex
	next     http.RoundTripper
	requests []string
}

func (l *requestLog) RoundTrip(r *http.Request) (*http.Response, error) {
	l.Lock()
	if strings.Contains(r.URL.Path, "/nodeimagesets") {
		l.requests = append(l.requests, r.Method+" "+r.URL.Path+" "+r.URL.Query().Get("fieldSelector"))
	}
	l.Unlock()
	return l.next.RoundTrip(r)
}

func (l *requestLog) all() []string {
	l.Lock()
	defer l.Unlock()
	return append([]string(nil), l.requests...)
}

var _ = Describe("Node agent", func() {
	const (
		nodeName    = "node-a"
		specTimeout = time.Minute
	)
	var (
		fake    *runtimetest.Fake
		agent   *nodeagent.Agent
		traffic *requestLog
		stop    func()
	)

	start := func() {
		GinkgoHelper()
		traffic = &requestLog{}
		own := rest.CopyConfig(server)
		own.Wrap(func(next http.RoundTripper) http.RoundTripper {
			traffic.next = next
			return traffic
		})
		repeated := true // each spec has a controller of the same name
		mgr, err := ctrl.NewManager(own, ctrl.Options{
			Scheme: scheme, Cache: nodeagent.CacheOptions(nodeName),
			Metrics:    metricsserver.Options{BindAddress: "0"},
			Controller: config.Controller{SkipNameValidation: &repeated},
		})
		Expect(err).NotTo(HaveOccurred())
		agent = nodeagent.New(nodeagent.Options{
			Runtime: fake, Status: nodeagent.NewStatusWriter(mgr.GetClient(), nodeName), MaxParallelPulls: 2,
			NoProgressTimeout: time.Minute, VerifyInterval: time.Minute, Log: GinkgoLogr,
		})
		Expect(mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { agent.Run(ctx); return nil }))).To(Succeed())
		reconciler := &nodeagent.Reconciler{Client: mgr.GetClient(), Agent: agent, NodeName: nodeName}
		Expect(reconciler.SetupWithManager(mgr)).To(Succeed())
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- mgr.Start(ctx) }()
		stop = sync.OnceFunc(func() {
			cancel()
			Eventually(ended).WithTimeout(10 * time.Second).Should(Receive(BeNil()))
		})
		DeferCleanup(func() { stop() })
	}

	BeforeEach(func() {
		fake = runtimetest.NewFake()
		DeferCleanup(func(ctx context.Context) {
			Expect(client.IgnoreNotFound(admin.DeleteAllOf(ctx, &v1alpha1.NodeImageSet{}))).To(Succeed())
		})
	})

	push := func(places ...*runtimetest.Registry) v1alpha1.NodeImage {
		GinkgoHelper()
		image, err := images.Image(images.Options{Layers: images.Layers("api", 2, images.KiB)})
		Expect(err).NotTo(HaveOccurred())
		for _, place := range places {
			Expect(place.Push("team/app:v1", image)).To(Succeed())
		}
		d, err := image.Digest()
		Expect(err).NotTo(HaveOccurred())
		return v1alpha1.NodeImage{Name: "registry.test/team/app:v1", Digest: digest.Digest(d.String()).String(), RegistryPolicy: v1alpha1.RegistryPolicyMirror}
	}
	create := func(ctx context.Context, node string, entries ...v1alpha1.NodeImage) *v1alpha1.NodeImageSet {
		GinkgoHelper()
		set := &v1alpha1.NodeImageSet{
			ObjectMeta: metav1.ObjectMeta{Name: node},
			Spec:       v1alpha1.NodeImageSetSpec{NodeName: node, ImageSet: entries},
		}
		Expect(admin.Create(ctx, set)).To(Succeed())
		return set
	}
	isReady := func(generation int64) func(Gomega, context.Context) {
		return func(g Gomega, ctx context.Context) {
			set := &v1alpha1.NodeImageSet{}
			g.Expect(admin.Get(ctx, client.ObjectKey{Name: nodeName}, set)).To(Succeed())
			g.Expect(set.Status.ObservedGeneration).To(Equal(generation))
			c := meta.FindStatusCondition(set.Status.Conditions, v1alpha1.ConditionReady)
			g.Expect(c).NotTo(BeNil())
			g.Expect(c.Status).To(Equal(metav1.ConditionTrue), c.Message)
			g.Expect(c.ObservedGeneration).To(Equal(generation))
			g.Expect(set.Status.Images).To(HaveLen(len(set.Spec.ImageSet)))
		}
	}

	It("pulls the images of its object, and reports them there", func(ctx context.Context) {
		create(ctx, nodeName, push(fake.Mirror))
		start()
		Eventually(ctx, isReady(1)).Should(Succeed())
		set := &v1alpha1.NodeImageSet{}
		Expect(admin.Get(ctx, client.ObjectKey{Name: nodeName}, set)).To(Succeed())
		Expect(set.Status.Images[0]).To(And(
			HaveField("State", v1alpha1.ImagePresent), HaveField("Source", v1alpha1.SourceMirror), HaveField("Attempts", int32(1))))

		By("removing from the status an image that leaves the spec")
		set.Spec.ImageSet = nil
		Expect(admin.Update(ctx, set)).To(Succeed())
		Eventually(ctx, isReady(2)).Should(Succeed())
	}, SpecTimeout(specTimeout))

	It("lists, watches and writes its own object only", func(ctx context.Context) {
		create(ctx, "node-b", push(fake.Mirror))
		create(ctx, nodeName, push(fake.Mirror))
		start()
		Eventually(ctx, isReady(1)).Should(Succeed())
		const path = "/apis/sluice.dev/v1alpha1/nodeimagesets"
		Expect(traffic.all()).To(HaveEach(Or(
			Equal("GET "+path+" metadata.name="+nodeName),
			Equal("PATCH "+path+"/"+nodeName+"/status "))))
		Expect(fake.Pulls()).To(HaveLen(1))
	}, SpecTimeout(specTimeout))

	It("costs one status write where a pull is quick", func(ctx context.Context) {
		create(ctx, nodeName, push(fake.Mirror))
		start()
		Eventually(ctx, isReady(1)).Should(Succeed())
		writes := func() (n int) {
			for _, request := range traffic.all() {
				if strings.HasPrefix(request, "PATCH") {
					n++
				}
			}
			return n
		}
		Expect(writes()).To(Equal(1))
		Consistently(ctx, writes).WithTimeout(2 * time.Second).Should(Equal(1))
	}, SpecTimeout(specTimeout))

	It("is synced where there is no object, and takes one up when it appears", func(ctx context.Context) {
		start()
		Eventually(ctx, agent.Synced).Should(BeTrue())
		Eventually(ctx, agent.Connected).Should(BeTrue())
		create(ctx, nodeName, push(fake.Mirror))
		Eventually(ctx, isReady(1)).Should(Succeed())
	}, SpecTimeout(specTimeout))

	It("writes the whole status for an object that was deleted and made again", func(ctx context.Context) {
		entry := push(fake.Mirror)
		set := create(ctx, nodeName, entry)
		start()
		Eventually(ctx, isReady(1)).Should(Succeed())
		Expect(admin.Delete(ctx, set)).To(Succeed())
		create(ctx, nodeName, entry)
		Eventually(ctx, isReady(1)).Should(Succeed())
		Expect(fake.Pulls()).To(HaveLen(1), "the image was there")
	}, SpecTimeout(specTimeout))

	It("continues after a restart from the status that it reported", func(ctx context.Context) {
		entry := push(fake.Upstream)
		entry.Digest, entry.Request, entry.RegistryPolicy = "", "m1", v1alpha1.RegistryPolicyDefault
		create(ctx, nodeName, entry)
		start()
		Eventually(ctx, isReady(1)).Should(Succeed())
		stop()
		before := &v1alpha1.NodeImageSet{}
		Expect(admin.Get(ctx, client.ObjectKey{Name: nodeName}, before)).To(Succeed())

		start()
		Eventually(ctx, agent.Connected).Should(BeTrue())
		Consistently(ctx, func(g Gomega) {
			after := &v1alpha1.NodeImageSet{}
			g.Expect(admin.Get(ctx, client.ObjectKey{Name: nodeName}, after)).To(Succeed())
			g.Expect(after.ResourceVersion).To(Equal(before.ResourceVersion), "equal status is not written")
		}).WithTimeout(3 * time.Second).Should(Succeed())
		Expect(fake.Upstream.Resolved()).To(Equal(1))
	}, SpecTimeout(specTimeout))
})
