// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/controllers/gate"
	"github.com/sluice-dev/sluice/internal/policy"
	"github.com/sluice-dev/sluice/webhook"
)

// agentTimeout is shorter than that of a cluster, so that an agent can be silent for so long.
const agentTimeout = 5 * time.Second

const controllerAccount = "system:serviceaccount:sluice-system:sluice-controller"

// replica is the gate's part of sluice-controller, in this process, with the rights
// that it has when it is installed.
type replica struct {
	address string
	figures *prometheus.Registry
	elected <-chan struct{}
	stop    func()
}

// controllerConfig is the configuration of a client with the rights of the controller.
func controllerConfig() *rest.Config {
	GinkgoHelper()
	c, err := control.RESTConfig()
	Expect(err).NotTo(HaveOccurred())
	c.Impersonate.UserName = controllerAccount
	c.QPS = -1
	return c
}

// startReplica starts one that serves webhooks at an address, or none if that is
// empty.
func startReplica(address string, edits ...func(*ctrl.Options)) *replica {
	GinkgoHelper()
	return startParts(address, true, edits...)
}

// startParts starts a replica that has the webhooks, if there is an address, and the
// controller, if it is wanted.
func startParts(address string, controller bool, edits ...func(*ctrl.Options)) *replica {
	GinkgoHelper()
	hooks := webhook.Options{BindAddress: address, DefaultPolicy: policy.DefaultAllow}
	server, err := webhook.NewServer(hooks, serving.Get)
	Expect(err).NotTo(HaveOccurred())
	options := ctrl.Options{
		Scheme:                 scheme,
		WebhookServer:          server,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		Controller:             config.Controller{SkipNameValidation: ptr.To(true)}, // several in one process
		Cache:                  cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
	}
	Expect(gate.AddToCache(&options.Cache, client.ObjectKey{})).To(Succeed())
	for _, edit := range edits {
		edit(&options)
	}
	manager, err := ctrl.NewManager(controllerConfig(), options)
	Expect(err).NotTo(HaveOccurred())

	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{address: address, figures: prometheus.NewRegistry(), elected: manager.Elected()}
	nodes := &gate.Nodes{Clock: clock.RealClock{}, AgentTimeout: agentTimeout}
	Expect(nodes.Watch(ctx, manager.GetCache())).To(Succeed())
	Expect(gate.AddIndexes(ctx, manager.GetFieldIndexer())).To(Succeed())
	cluster := &gate.ClusterReader{Nodes: nodes, Prefetches: manager.GetCache()}
	if controller {
		metrics, err := gate.NewMetrics(r.figures)
		Expect(err).NotTo(HaveOccurred())
		reconciler := &gate.Reconciler{Client: manager.GetClient(), APIReader: manager.GetAPIReader(), Cluster: cluster,
			Recorder: manager.GetEventRecorder("sluice-gate"), Clock: clock.RealClock{}, Metrics: metrics}
		Expect(reconciler.SetupWithManager(manager)).To(Succeed())
	}
	if address != "" {
		Expect(webhook.SetupWithManager(ctx, manager, hooks, cluster, r.figures)).To(Succeed())
	}
	stopped := make(chan error, 1)
	go func() { stopped <- manager.Start(ctx) }()
	r.stop = func() {
		// A manager that is to stop before its caches are filled never does.
		Expect(manager.GetCache().WaitForCacheSync(ctx)).To(BeTrue())
		cancel()
		Eventually(stopped).WithTimeout(time.Minute).Should(Receive(Succeed()))
		r.stop = func() {}
	}
	if address != "" {
		Eventually(func() error { return server.StartedChecker()(nil) }).Should(Succeed())
	}
	return r
}

// outage ends the replica that serves webhooks. Another is started by end, or after
// the spec.
func outage() (end func()) {
	GinkgoHelper()
	sluice.stop()
	end = sync.OnceFunc(func() { sluice = startReplica(sluice.address) })
	DeferCleanup(end)
	return end
}

// figure is the sum of a metric's values, or of its counts if it is a histogram; with
// a label value, of the series that have it.
func (r *replica) figure(name string, value ...string) float64 {
	GinkgoHelper()
	families, err := r.figures.Gather()
	Expect(err).NotTo(HaveOccurred())
	var sum float64
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() != name || len(value) > 0 && metric.GetLabel()[0].GetValue() != value[0] {
				continue
			}
			sum += metric.GetGauge().GetValue() + metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return sum
}
