// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/policy"
)

func newLogHandler(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.Level(-1)})
}

// controller is one instance of the controller, as its binary runs it, with the rights of config/rbac
// alone.
type controller struct {
	elected  <-chan struct{}
	registry *prometheus.Registry
	requests *requestLog
	stop     context.CancelFunc
	stopped  chan error
}

// settings are what a spec may set differently.
type settings struct {
	limits   plan.Limits
	clock    clock.PassiveClock
	client   func(client.Client) client.Client
	secrets  bool
	fallback policy.Default
	election bool
}

// start runs a controller until the spec ends or it is stopped.
func start(change ...func(*settings)) *controller {
	GinkgoHelper()
	s := settings{limits: plan.DefaultLimits(), clock: clock.RealClock{}, client: func(c client.Client) client.Client { return c }}
	for _, f := range change {
		f(&s)
	}
	c := &controller{registry: prometheus.NewRegistry(), requests: &requestLog{}, stopped: make(chan error, 1)}
	restConfig := rest.CopyConfig(server.Config)
	restConfig.QPS = -1
	restConfig.Impersonate.UserName = "system:serviceaccount:sluice-system:sluice-controller"
	restConfig.Wrap(c.requests.count)
	manager, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         distribution.CacheOptions(),
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		Controller:                    config.Controller{SkipNameValidation: ptr.To(true)},
		LeaderElection:                s.election,
		LeaderElectionID:              "sluice-controller",
		LeaderElectionNamespace:       "sluice-system",
		LeaderElectionReleaseOnCancel: true,
		RetryPeriod:                   ptr.To(100 * time.Millisecond),
	})
	Expect(err).NotTo(HaveOccurred())
	c.elected = manager.Elected()
	metrics, err := distribution.NewMetrics(c.registry)
	Expect(err).NotTo(HaveOccurred())
	reconciler := &distribution.Reconciler{
		Client:        s.client(manager.GetClient()),
		APIReader:     manager.GetAPIReader(),
		Recorder:      manager.GetEventRecorder("sluice-controller"),
		Clock:         s.clock,
		Limits:        s.limits,
		PullSecrets:   s.secrets,
		DefaultPolicy: cmp.Or(s.fallback, policy.DefaultAllow),
		Metrics:       metrics,
	}
	Expect(reconciler.SetupWithManager(manager)).To(Succeed())
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = func() {
		GinkgoHelper()
		cancel()
		Eventually(c.stopped).Should(BeClosed())
	}
	go func() {
		defer GinkgoRecover()
		defer close(c.stopped)
		Expect(manager.Start(ctx)).To(Succeed())
	}()
	DeferCleanup(c.stop)
	return c
}

// requestLog counts the writes of each kind.
type requestLog struct {
	mu     sync.Mutex
	writes map[string]int
}

func (l *requestLog) count(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		if request.Method != http.MethodGet {
			path := strings.Split(strings.Trim(request.URL.Path, "/"), "/")
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.writes == nil {
				l.writes = map[string]int{}
			}
			for _, kind := range []string{"imageprefetches", "nodeimagesets", "events"} {
				if slices.Contains(path, kind) {
					l.writes[kind]++
				}
			}
		}
		return next.RoundTrip(request)
	})
}

func (l *requestLog) writesTo(kind string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes[kind]
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// skewedClock is the real clock, moved forward by a test.
type skewedClock struct {
	clock.RealClock
	ahead atomic.Int64
}

func (c *skewedClock) Now() time.Time { return c.RealClock.Now().Add(time.Duration(c.ahead.Load())) }

func (c *skewedClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

func (c *skewedClock) forward(by time.Duration) { c.ahead.Add(int64(by)) }

// createNode adds a Ready Linux node.
func createNode(ctx context.Context, name string, change ...func(*corev1.Node)) *corev1.Node {
	GinkgoHelper()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
			NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64"},
		},
	}
	for _, f := range change {
		f(node)
	}
	status := node.Status
	Expect(api.Create(ctx, node)).To(Succeed())
	node.Status = status
	Expect(api.Status().Update(ctx, node)).To(Succeed())
	return node
}

func createNodes(ctx context.Context, n int) (names []string) {
	GinkgoHelper()
	for i := range n {
		names = append(names, fmt.Sprintf("node-%d", i+1))
		createNode(ctx, names[i])
	}
	return names
}

func labelled(key, value string) func(*corev1.Node) {
	return func(node *corev1.Node) { node.Labels[key] = value }
}

// createPrefetch applies an ImagePrefetch in the namespace default.
func createPrefetch(ctx context.Context, name string, change ...func(*v1alpha1.ImagePrefetch)) *v1alpha1.ImagePrefetch {
	GinkgoHelper()
	prefetch := &v1alpha1.ImagePrefetch{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{app}},
	}
	for _, f := range change {
		f(prefetch)
	}
	Expect(api.Create(ctx, prefetch)).To(Succeed())
	return prefetch
}

func ofImages(images ...v1alpha1.ImageReference) func(*v1alpha1.ImagePrefetch) {
	return func(prefetch *v1alpha1.ImagePrefetch) { prefetch.Spec.Images = images }
}

func onNodesWith(key, value string) func(*v1alpha1.ImagePrefetch) {
	return func(prefetch *v1alpha1.ImagePrefetch) { prefetch.Spec.NodeSelector = map[string]string{key: value} }
}

// update changes an object, and retries if others changed it at the same time.
func update[T client.Object](ctx context.Context, object T, change func(T)) {
	GinkgoHelper()
	Eventually(func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		change(object)
		return api.Update(ctx, object)
	}).Should(Succeed())
}

// statusOf reads the status of an ImagePrefetch, for Eventually.
func statusOf(ctx context.Context, prefetch *v1alpha1.ImagePrefetch) func(Gomega) v1alpha1.ImagePrefetchStatus {
	return func(g Gomega) v1alpha1.ImagePrefetchStatus {
		var now v1alpha1.ImagePrefetch
		g.Expect(api.Get(ctx, client.ObjectKeyFromObject(prefetch), &now)).To(Succeed())
		g.Expect(now.Status.ObservedGeneration).To(Equal(now.Generation))
		return now.Status
	}
}

// haveCondition matches a status by a condition's status and reason.
func haveCondition(kind string, status metav1.ConditionStatus, reason string) OmegaMatcher {
	return WithTransform(func(s v1alpha1.ImagePrefetchStatus) string {
		condition := meta.FindStatusCondition(s.Conditions, kind)
		if condition == nil {
			return "none"
		}
		return fmt.Sprintf("%s=%s %s", condition.Type, condition.Status, condition.Reason)
	}, Equal(fmt.Sprintf("%s=%s %s", kind, status, reason)))
}

func beReady() OmegaMatcher {
	return haveCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonAllNodesHoldImages)
}

func notReady(reason string) OmegaMatcher {
	return haveCondition(v1alpha1.ConditionReady, metav1.ConditionFalse, reason)
}

func degraded(reason string) OmegaMatcher {
	return haveCondition(v1alpha1.ConditionDegraded, metav1.ConditionTrue, reason)
}

func messageOf(kind string, matcher OmegaMatcher) OmegaMatcher {
	return WithTransform(func(s v1alpha1.ImagePrefetchStatus) string {
		if condition := meta.FindStatusCondition(s.Conditions, kind); condition != nil {
			return condition.Message
		}
		return ""
	}, matcher)
}

// eventsOn reads the types and reasons of the events on an ImagePrefetch, in the order in which they
// were recorded, for Eventually.
func eventsOn(ctx context.Context, prefetch *v1alpha1.ImagePrefetch) func(Gomega) []string {
	return func(g Gomega) []string {
		var list eventsv1.EventList
		g.Expect(api.List(ctx, &list, client.InNamespace(prefetch.Namespace))).To(Succeed())
		slices.SortFunc(list.Items, func(a, b eventsv1.Event) int { return a.EventTime.Compare(b.EventTime.Time) })
		var reasons []string
		for _, event := range list.Items {
			if event.Regarding.UID == prefetch.UID {
				reasons = append(reasons, event.Type+" "+event.Reason)
				g.Expect(event.Series).To(BeNil())
			}
		}
		return reasons
	}
}

// setOf reads the images that a node wants, with their registry policies, for Eventually.
func setOf(ctx context.Context, node string) func(Gomega) map[string]v1alpha1.RegistryPolicy {
	return func(g Gomega) map[string]v1alpha1.RegistryPolicy {
		var set v1alpha1.NodeImageSet
		g.Expect(client.IgnoreNotFound(api.Get(ctx, client.ObjectKey{Name: node}, &set))).To(Succeed())
		images := map[string]v1alpha1.RegistryPolicy{}
		for _, image := range set.Spec.ImageSet {
			images[image.Name] = image.RegistryPolicy
		}
		return images
	}
}
