// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate says what becomes of a gated Deployment, case by case as docs/gate.md
// lists them: with the real API server, the real Deployment controller and the real
// kubectl. There are Node objects and no nodes; an ImagePrefetch is Ready, and an agent has
// images, when a spec says so.
package gate

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/admission"
	"github.com/sluice-dev/sluice/test/cluster"
)

const timeout = 30 * time.Second

var (
	control *cluster.Cluster
	api     client.Client
	// asController may write what Sluice's controller may.
	asController client.Client
	nodes        = &kubelets{nodes: map[string]bool{}}
	sluice       *replica // the replica that webhooks are served by
	scheme       = runtime.NewScheme()
	serving      *admission.Certificate
)

func TestGate(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(timeout)
	SetDefaultEventuallyPollingInterval(20 * time.Millisecond)
	RunSpecs(t, "Gate")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	log.SetLogger(GinkgoLogr)
	Expect(clientgoscheme.AddToScheme(scheme)).To(Succeed())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())
	var err error
	control, err = cluster.Start(ctx, cluster.Options{Nodes: []cluster.NodeOptions{}, Audit: true, AuditObjects: true, Logf: GinkgoT().Logf})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(control.Stop()).To(Succeed()) })
	config, err := control.RESTConfig()
	Expect(err).NotTo(HaveOccurred())
	config.QPS = -1
	api, err = client.New(config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())

	root, err := filepath.Abs(filepath.Join("..", ".."))
	Expect(err).NotTo(HaveOccurred())
	for _, dir := range []string{"crd", "rbac"} {
		objects, err := admission.Read(filepath.Join(root, "config", dir))
		Expect(err).NotTo(HaveOccurred())
		Expect(admission.Apply(ctx, api, objects...)).To(Succeed())
	}
	Eventually(func() error { return api.List(ctx, &v1alpha1.ImagePrefetchList{}) }).Should(Succeed())

	asController, err = client.New(controllerConfig(), client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	beating, stop := context.WithCancel(context.Background())
	DeferCleanup(stop)
	go nodes.run(beating)
	nodes.add(ctx, "node-1", "web")

	serving, err = admission.NewCertificate(net.ParseIP(control.GatewayIP))
	Expect(err).NotTo(HaveOccurred())
	sluice = startReplica(freeAddress())
	DeferCleanup(func() { sluice.stop() })
	Expect(admission.Install(ctx, api, root, "https://"+sluice.address, serving.Text)).To(Succeed())
	Eventually(func(g Gomega) {
		out, _, err := kubectl(ctx, deploymentYAML("default", "probe", "a"), "create", "--dry-run=server", "-o", "jsonpath={.spec.paused}", "-f", "-")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out).To(Equal("true"))
	}).Should(Succeed())
})

// freeAddress is one that the API server reaches and where nobody listens now.
func freeAddress() string {
	GinkgoHelper()
	listener, err := net.Listen("tcp", net.JoinHostPort(control.GatewayIP, "0"))
	Expect(err).NotTo(HaveOccurred())
	defer func() { Expect(listener.Close()).To(Succeed()) }()
	return listener.Addr().String()
}

var namespaces int

func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	namespaces++
	name := fmt.Sprintf("team-%d", namespaces)
	_, _, err := kubectl(ctx, "", "create", "namespace", name)
	Expect(err).NotTo(HaveOccurred())
	return name
}
