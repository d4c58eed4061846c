// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What is written once stays true through failed writes, restarts, stale caches and the writes of
// others.
var _ = Describe("Distribution controller", func() {
	var nodes *agents
	BeforeEach(func() { nodes = runAgents() })

	// expectNoSecondSeed makes a node and an ImagePrefetch with which a plan that does not know the
	// seed would choose another.
	expectNoSecondSeed := func(ctx context.Context) *v1alpha1.ImagePrefetch {
		GinkgoHelper()
		createNode(ctx, "a-node-that-sorts-first", labelled("disk", "fast"))
		second := createPrefetch(ctx, "second", onNodesWith("disk", "fast"))
		Eventually(statusOf(ctx, second)).Should(HaveField("DesiredNodes", BeEquivalentTo(1)))
		Consistently(func() int { return nodes.mostSeeds(app) }).Should(Equal(1))
		return second
	}

	Context("when a NodeImageSet cannot be written", func() {
		It("says so, goes on with the others, and tries again", func(ctx SpecContext) {
			createNodes(ctx, 2)
			rejecting := &rejectingWriter{node: "node-2"}
			rejecting.rejects.Store(true)
			start(func(s *settings) { s.client = rejecting.wrap })
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(And(notReady(v1alpha1.ReasonReconcileFailed),
				messageOf(v1alpha1.ConditionReady, Equal(`the NodeImageSet of node "node-2" could not be written: Forbidden; the controller tries again`)),
				HaveField("ReadyNodes", BeEquivalentTo(1))))
			rejecting.rejects.Store(false)
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
		})
	})

	Context("when the controller is replaced in the middle", func() {
		It("carries on with the same seed after a restart", func(ctx SpecContext) {
			createNodes(ctx, 3)
			nodes.change(func(a *agents) { a.slow["node-1"], a.slow["node-2"], a.slow["node-3"] = true, true, true })
			c := start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(setOf(ctx, "node-1")).Should(HaveKeyWithValue(app, v1alpha1.RegistryPolicyDefault))
			c.stop()
			createNode(ctx, "a-node-that-sorts-first")
			stale := &staleReader{}
			stale.blind.Store(true) // the cache of the new controller shows no write of the old one
			start(func(s *settings) { s.client = stale.wrap })
			Eventually(statusOf(ctx, prefetch)).Should(HaveField("DesiredNodes", BeEquivalentTo(4)))
			stale.blind.Store(false)
			nodes.change(func(a *agents) { a.slow = map[string]bool{} })
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveExactElements("node-1"))
			Expect(nodes.mostSeeds(app)).To(Equal(1))
			Expect(nodes.heads(app)).To(Equal(1))
		})

		It("hands over to the standby", func(ctx SpecContext) {
			createNodes(ctx, 3)
			nodes.change(func(a *agents) { a.slow["node-1"] = true })
			electing := func(s *settings) { s.election = true }
			leader := start(electing)
			Eventually(leader.elected).Should(BeClosed())
			standby := start(electing)
			prefetch := createPrefetch(ctx, "app")
			Eventually(setOf(ctx, "node-1")).Should(HaveKeyWithValue(app, v1alpha1.RegistryPolicyDefault))
			Consistently(standby.elected).ShouldNot(BeClosed())
			Expect(standby.requests.writesTo("nodeimagesets")).To(BeZero())
			leader.stop()
			Eventually(standby.elected).Should(BeClosed())
			nodes.change(func(a *agents) { a.slow = map[string]bool{} })
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Expect(nodes.mostSeeds(app)).To(Equal(1))
		})
	})

	Context("when the cache lags behind", func() {
		It("does not send a second node upstream", func(ctx SpecContext) {
			createNodes(ctx, 2)
			nodes.change(func(a *agents) { a.slow["node-1"] = true })
			stale := &staleReader{}
			start(func(s *settings) { s.client = stale.wrap })
			stale.blind.Store(true) // the cache shows no NodeImageSet from now on
			first := createPrefetch(ctx, "first")
			Eventually(setOf(ctx, "node-1")).Should(HaveKeyWithValue(app, v1alpha1.RegistryPolicyDefault))
			second := expectNoSecondSeed(ctx)
			stale.blind.Store(false)
			nodes.change(func(a *agents) { a.slow = map[string]bool{} })
			Eventually(statusOf(ctx, first)).Should(beReady())
			Eventually(statusOf(ctx, second)).Should(beReady())
			Expect(nodes.mostSeeds(app)).To(Equal(1))
		})
	})

	Context("when the answer to a write is lost", func() {
		It("reads the object back before it chooses a seed", func(ctx SpecContext) {
			createNodes(ctx, 2)
			nodes.change(func(a *agents) { a.slow["node-1"] = true })
			stale, lossy := &staleReader{}, &lossyWriter{}
			stale.blind.Store(true)
			start(func(s *settings) {
				s.client = func(c client.Client) client.Client { return lossy.wrap(stale.wrap(c)) }
			})
			createPrefetch(ctx, "first")
			Eventually(setOf(ctx, "node-1")).Should(HaveKeyWithValue(app, v1alpha1.RegistryPolicyDefault))
			second := expectNoSecondSeed(ctx)
			stale.blind.Store(false)
			nodes.change(func(a *agents) { a.slow = map[string]bool{} })
			Eventually(statusOf(ctx, second)).Should(beReady())
			Expect(nodes.mostSeeds(app)).To(Equal(1))
		})
	})

	Context("when somebody else changes a NodeImageSet", func() {
		It("writes it again", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
			update(ctx, set, func(s *v1alpha1.NodeImageSet) { s.Spec.ImageSet = nil })
			Eventually(setOf(ctx, "node-1")).Should(HaveKeyWithValue(app, v1alpha1.RegistryPolicyMirror))
			Expect(api.Delete(ctx, set)).To(Succeed())
			Eventually(setOf(ctx, "node-1")).Should(HaveKeyWithValue(app, v1alpha1.RegistryPolicyMirror))
		})
	})
})
