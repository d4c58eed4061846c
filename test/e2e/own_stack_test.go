// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/test/stack"
)

// onStackOfItsOwn gives the specs of an Ordered container a stack that they may
// take apart, in place of the one that all others share.
func onStackOfItsOwn(opts stack.Options) {
	BeforeAll(func(ctx SpecContext) {
		shared := s
		own := startStack(ctx, opts)
		s = own
		DeferCleanup(func() {
			s = shared
			Expect(own.Stop()).To(Succeed())
		})
	})
}
