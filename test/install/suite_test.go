// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"os"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/test/install"
)

// timeout bounds what only a watch can tell.
const timeout = 90 * time.Second

// site is the cluster that Sluice is installed on.
var site *install.Installation

func TestInstall(t *testing.T) {
	log.SetLogger(GinkgoLogr)
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(timeout)
	SetDefaultEventuallyPollingInterval(100 * time.Millisecond)
	RunSpecs(t, "Sluice installed by Helm")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	opts := install.Options{UpstreamNames: []string{privateRegistry}, Logf: GinkgoT().Logf, Audit: true}
	if logs := os.Getenv("SLUICE_TEST_LOGS"); logs != "" { // for debugging
		var err error
		opts.LogDir, err = os.MkdirTemp(logs, "install-")
		Expect(err).NotTo(HaveOccurred())
	}
	var err error
	site, err = install.Start(ctx, opts)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(site.Stop()).To(Succeed()) })
})

// The Pods' logs say more than a condition that did not become True.
var _ = JustAfterEach(func(ctx SpecContext) {
	if !CurrentSpecReport().Failed() {
		return
	}
	for _, args := range [][]string{
		{"get", "pods,imageprefetches,deployments", "--all-namespaces", "-o", "wide"},
		{"describe", "pods", "--namespace", install.Namespace},
		{"logs", "--namespace", install.Namespace, "--selector", "app.kubernetes.io/name=sluice", "--prefix", "--tail=60"},
		{"get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"},
	} {
		out, err := site.Cluster.Kubectl(ctx, args...)
		GinkgoWriter.Printf("kubectl %v: %v\n%s\n", args, err, out)
	}
})

// pods are those of a component of Sluice.
func pods(ctx context.Context, component string) []corev1.Pod {
	GinkgoHelper()
	var list corev1.PodList
	Expect(site.Client.List(ctx, &list, client.InNamespace(install.Namespace), client.MatchingLabels{"app.kubernetes.io/component": component})).To(Succeed())
	return list.Items
}

func ready(pod corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
