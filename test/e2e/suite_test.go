// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e says what Sluice does, on a real cluster: real API server,
// kubelets and containerds, a counting registry, a mirror on every node, and our
// own binaries under the race detector. One cluster serves all specs; each has
// images of its own.
package e2e

import (
	"context"
	"os"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/test/stack"
)

// timeout bounds what only a watch can tell. Nothing here takes a tenth of it
// when it works.
const timeout = 90 * time.Second

var s *stack.Stack

func TestE2E(t *testing.T) {
	log.SetLogger(GinkgoLogr)
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(timeout)
	SetDefaultEventuallyPollingInterval(100 * time.Millisecond)
	RunSpecs(t, "Sluice on a real cluster")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	// The logs are read for what must not be in them, so everything is logged.
	s = startStack(ctx, stack.Options{
		Audit: true, AgentFlags: []string{"--verbosity=2"},
		ControllerFlags: []string{"--verbosity=2", "--node-local-repositories=" + nodeLocal + "/**"},
	})
	DeferCleanup(func() { Expect(s.Stop()).To(Succeed()) })
})

// startStack starts one under the race detector.
func startStack(ctx context.Context, opts stack.Options) *stack.Stack {
	GinkgoHelper()
	opts.Race, opts.Logf = true, GinkgoT().Logf
	if logs := os.Getenv("SLUICE_TEST_LOGS"); logs != "" { // for debugging
		var err error
		opts.LogDir, err = os.MkdirTemp(logs, "stack-")
		Expect(err).NotTo(HaveOccurred())
	}
	started, err := stack.Start(ctx, opts)
	Expect(err).NotTo(HaveOccurred())
	return started
}
