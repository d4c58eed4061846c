// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package agenttest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/agenttest"
	"github.com/sluice-dev/sluice/test/apiserver"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

var (
	server *apiserver.Server
	scheme = runtime.NewScheme()
)

func TestAgents(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Node agents, as controllers see them")
}

var _ = BeforeSuite(func() {
	ctrl.SetLogger(logr.Discard())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())
	var err error
	server, err = apiserver.Start()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(server.Stop()).To(Succeed()) })
})

var _ = Describe("The agent, on a runtime in memory", func() {
	agenttest.Contract(func() agenttest.Fleet { return newFleet() })
})

// fleet is real agents on runtimes in memory, which share a registry and a mirror.
type fleet struct {
	client           client.Client
	upstream, mirror *runtimetest.Registry

	mu       sync.Mutex
	trouble  agenttest.Trouble
	versions int
	runtimes []*runtimetest.Fake
}

func newFleet() *fleet {
	GinkgoHelper()
	f := &fleet{upstream: runtimetest.NewRegistry(), mirror: runtimetest.NewRegistry()}
	var err error
	f.client, err = client.New(server.Config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	return f
}

func (f *fleet) Client() client.Client { return f.client }

// Start runs an agent until the spec ends, wired as its program wires it.
func (f *fleet) Start(node string) {
	GinkgoHelper()
	mgr, err := ctrl.NewManager(server.Config, ctrl.Options{
		Scheme: scheme, Cache: nodeagent.CacheOptions(node), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	})
	Expect(err).NotTo(HaveOccurred())
	containers := runtimetest.NewFake()
	containers.Upstream, containers.Mirror = f.upstream, f.mirror
	containers.Fail = f.fail
	agent := nodeagent.New(nodeagent.Options{
		Runtime: containers, Status: nodeagent.NewStatusWriter(mgr.GetClient(), node),
		MaxParallelPulls: 3, NoProgressTimeout: time.Minute, VerifyInterval: time.Hour, Log: logr.Discard(),
	})
	Expect(mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { agent.Run(ctx); return nil }))).To(Succeed())
	reconciler := &nodeagent.Reconciler{Client: mgr.GetClient(), Agent: agent, NodeName: node}
	Expect(reconciler.SetupWithManager(mgr)).To(Succeed())
	f.mu.Lock()
	f.runtimes = append(f.runtimes, containers)
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(ctx) }()
	DeferCleanup(func() {
		cancel()
		Eventually(stopped).WithTimeout(time.Minute).Should(Receive(Succeed()))
	})
}

// Push also brings to the mirror what any node comes to have, as Spegel does.
func (f *fleet) Push(image string) string {
	GinkgoHelper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.versions++
	artifact, err := images.Image(images.Options{Layers: images.Layers(fmt.Sprintf("%s %d", image, f.versions), 2, images.KiB)})
	Expect(err).NotTo(HaveOccurred())
	_, ref, _ := strings.Cut(image, "/")
	Expect(f.upstream.Push(ref, artifact)).To(Succeed())
	Expect(f.mirror.Push(ref, artifact)).To(Succeed())
	hash, err := artifact.Digest()
	Expect(err).NotTo(HaveOccurred())
	f.share(digest.Digest(hash.String()), image)
	return hash.String()
}

// share withholds an image from the mirror until a node has it.
func (f *fleet) share(d digest.Digest, image string) {
	serve := f.mirror.Withhold(d)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for !f.somebodyHas(image, d) {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
		serve()
	}()
	DeferCleanup(func() {
		cancel()
		<-done
	})
}

func (f *fleet) somebodyHas(image string, d digest.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, containers := range f.runtimes {
		if record, ok := containers.Record(image); ok && record.Digest == d {
			return true
		}
	}
	return false
}

func (f *fleet) SetTrouble(trouble agenttest.Trouble) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = trouble
}

// fail is the trouble of a pull that may ask the upstream.
func (f *fleet) fail(request nodeagent.PullRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if request.Policy != v1alpha1.RegistryPolicyDefault {
		return nil
	}
	switch f.trouble {
	case agenttest.Unreachable:
		return fmt.Errorf("%w: connection refused", nodeagent.ErrRegistryUnavailable)
	case agenttest.Unknown:
		return fmt.Errorf("%w: 404", nodeagent.ErrImageNotFound)
	case agenttest.NoTrouble:
		return nil
	}
	return errors.New("unknown trouble")
}

func (f *fleet) Lookups(string) int { return f.upstream.Resolved() }

func (f *fleet) Pulls(d string) int { return f.upstream.Fetched(digest.Digest(d)) }
