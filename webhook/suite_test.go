// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
	"github.com/sluice-dev/sluice/internal/policy"
	"github.com/sluice-dev/sluice/internal/scheduling"
	"github.com/sluice-dev/sluice/test/admission"
	"github.com/sluice-dev/sluice/test/apiserver"
	"github.com/sluice-dev/sluice/webhook"
)

const (
	timeout = 20 * time.Second
	// controllerAccount is who the match conditions except.
	controllerAccount = "system:serviceaccount:sluice-system:sluice-controller"
)

var (
	server     *apiserver.Server
	api        client.Client // as an administrator
	controller client.Client // as Sluice's controller
	stranger   client.Client // as someone who may do everything but is not the controller
	figures    *prometheus.Registry
	scheme     = runtime.NewScheme()
	stopServer func()
	address    string
	serving    *admission.Certificate
)

func TestWebhooks(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(timeout)
	SetDefaultEventuallyPollingInterval(20 * time.Millisecond)
	RunSpecs(t, "Webhooks")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	log.SetLogger(GinkgoLogr)
	Expect(clientgoscheme.AddToScheme(scheme)).To(Succeed())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())
	var err error
	server, err = apiserver.Start()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(server.Stop()).To(Succeed()) })
	api = clientFor(server.Config)

	roles, err := admission.Read(filepath.Join(server.Root, "config", "rbac"))
	Expect(err).NotTo(HaveOccurred())
	Expect(admission.Apply(ctx, api, roles...)).To(Succeed())
	controller = clientFor(as(controllerAccount))
	stranger = clientFor(as("stranger", "system:masters"))

	serving, err = admission.NewCertificate(net.IPv4(127, 0, 0, 1))
	Expect(err).NotTo(HaveOccurred())
	address = freeAddress()
	serve()
	DeferCleanup(func() { stopServer() })
	Expect(admission.Install(ctx, api, server.Root, "https://"+address, serving.Text)).To(Succeed())
	untilAsked(ctx)
})

func clientFor(config *rest.Config) client.Client {
	GinkgoHelper()
	c, err := client.New(config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	return c
}

func as(user string, groups ...string) *rest.Config {
	config := rest.CopyConfig(server.Config)
	config.Impersonate.UserName, config.Impersonate.Groups = user, groups
	return config
}

// freeAddress is where nobody listens now.
func freeAddress() string {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	defer func() { Expect(listener.Close()).To(Succeed()) }()
	return listener.Addr().String()
}

// serve starts the webhooks, with the rights of the controller.
func serve() {
	GinkgoHelper()
	options := webhook.Options{BindAddress: address, DefaultPolicy: policy.DefaultDeny}
	Expect(options.Validate()).To(Succeed())
	webhooks, err := webhook.NewServer(options, serving.Get)
	Expect(err).NotTo(HaveOccurred())
	manager, err := ctrl.NewManager(as(controllerAccount), ctrl.Options{
		Scheme: scheme, WebhookServer: webhooks,
		Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
	})
	Expect(err).NotTo(HaveOccurred())
	figures = prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(context.Background())
	Expect(webhook.SetupWithManager(ctx, manager, options, cluster{}, figures)).To(Succeed())
	stopped := make(chan error, 1)
	go func() { stopped <- manager.Start(ctx) }()
	stopServer = func() {
		cancel()
		Eventually(stopped).Should(Receive(Succeed()))
		stopServer = func() {}
	}
	Eventually(func() error { return webhooks.StartedChecker()(nil) }).Should(Succeed())
}

// cluster is one node that takes Pods and has no images.
type cluster struct{}

func (cluster) Read(_ context.Context, _ *appsv1.Deployment, named *v1alpha1.ImagePrefetch) (hold.Cluster, time.Time, error) {
	known := hold.Cluster{Nodes: []hold.Node{{Node: scheduling.Node{Name: "node-1", OS: "linux", Ready: true}}}}
	if named != nil {
		known.Prefetches = append(known.Prefetches, named)
	}
	return known, time.Time{}, nil
}

// untilAsked waits until the API server knows of all that was installed.
func untilAsked(ctx context.Context) {
	GinkgoHelper()
	Eventually(func() error {
		return api.Create(ctx, policyOf("probe", v1alpha1.PrefetchPolicySpec{AllowedRepositories: []v1alpha1.RepositoryPattern{"*"}}), client.DryRunAll)
	}).ShouldNot(Succeed())
	Eventually(func(g Gomega) {
		probe := gated("default", "probe")
		g.Expect(api.Create(ctx, probe, client.DryRunAll)).To(Succeed())
		g.Expect(probe.Spec.Paused).To(BeTrue())
	}).Should(Succeed())
	Eventually(func() error {
		return stranger.Create(ctx, &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "probe"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "probe"}}, client.DryRunAll)
	}).ShouldNot(Succeed())
}

var namespaces int

// newNamespace makes a namespace with a label by which policies find it.
func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	namespaces++
	name := fmt.Sprintf("tenant-%d", namespaces)
	Expect(api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"tenant": name}}})).To(Succeed())
	return name
}

func policyOf(name string, spec v1alpha1.PrefetchPolicySpec) *v1alpha1.PrefetchPolicy {
	return &v1alpha1.PrefetchPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

// counted is the value of a counter with one label.
func counted(name, value string) float64 {
	GinkgoHelper()
	families, err := figures.Gather()
	Expect(err).NotTo(HaveOccurred())
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == name && metric.GetLabel()[0].GetValue() == value {
				return metric.GetCounter().GetValue()
			}
		}
	}
	Fail("no metric " + name + " for " + value)
	return 0
}
