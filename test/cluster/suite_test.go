// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"os"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/test/cluster"
)

// shared is the cluster that the specs have in common. Each leaves it as it
// was.
var shared *cluster.Cluster

func TestMain(m *testing.M) {
	if end := os.Getenv(ownerVariable); end != "" {
		own(end)
		return
	}
	if dir := os.Getenv(superviseVariable); dir != "" {
		if err := supervise(dir); err != nil {
			panic(err)
		}
		return
	}
	m.Run()
}

func TestCluster(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(30 * time.Second)
	SetDefaultEventuallyPollingInterval(100 * time.Millisecond)
	RunSpecs(t, "Cluster")
}

var _ = BeforeSuite(func(ctx context.Context) {
	mirror, err := cluster.DefaultMirror(ctx, logf)
	Expect(err).NotTo(HaveOccurred())
	shared, err = cluster.Start(ctx, cluster.Options{
		Nodes: []cluster.NodeOptions{
			{Zone: "east", Labels: map[string]string{"disk": "fast"}},
			{Zone: "west"},
			{Zone: "west", Taints: []string{"dedicated=builds:NoSchedule"}},
		},
		Mirror:        mirror,
		UpstreamNames: []string{"registry.example.com"},
		Audit:         true,
		Logf:          logf,
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(shared.Stop()).To(Succeed()) })
}, NodeTimeout(15*time.Minute)) // the first build

func logf(format string, args ...any) { GinkgoWriter.Printf(format+"\n", args...) }
