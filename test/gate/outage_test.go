// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

var _ = Describe("With Sluice down", Serial, func() {
	It("a gated change of images is rejected with a clear message, and everything else goes on", func(ctx SpecContext) {
		running, held := runningTenant(ctx), holdingTenant(ctx)
		outage()
		_, _, err := kubectl(ctx, "", "--namespace="+running.namespace, "set", "image", "deployment/app", "main="+repository+":b")
		Expect(err).To(MatchError(ContainSubstring(`failed calling webhook "gate.sluice.dev"`)))
		for _, t := range []tenant{running, held} {
			t.kubectl(ctx, "scale", "deployment", "app", "--replicas=3")
			t.kubectl(ctx, "label", "deployment", "app", "team=x")
		}
		By("leaving the way out open")
		held.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		held.kubectl(ctx, "rollout", "resume", "deployment", "app")
		Eventually(func() []string { return held.versions(ctx) }).Should(HaveExactElements("a", "b"))
	})

	It("what changes no images rolls out, and a pause of the owner's stands", func(ctx SpecContext) {
		environment, restarted, paused := runningTenant(ctx), runningTenant(ctx), runningTenant(ctx)
		outage()
		environment.kubectl(ctx, "set", "env", "deployment/app", "V=1")
		environment.expectRolling(ctx, "a", "a")
		restarted.kubectl(ctx, "rollout", "restart", "deployment", "app")
		restarted.expectRolling(ctx, "a", "a")
		paused.kubectl(ctx, "scale", "deployment", "app", "--replicas=2")
		paused.kubectl(ctx, "rollout", "pause", "deployment", "app")
		paused.expectOwnersPause(ctx, "a")
		By("asking the gate before it is resumed: it may have new images")
		_, _, err := kubectl(ctx, "", "--namespace="+paused.namespace, "rollout", "resume", "deployment", "app")
		Expect(err).To(MatchError(ContainSubstring(`failed calling webhook "gate.sluice.dev"`)))
	})

	It("but for the controller, releases go on, and so do timeouts", func(ctx SpecContext) {
		const limit = 3 * time.Second
		prefetched, timed := holdingTenant(ctx), holdingTenant(ctx, "sluice.dev/hold-timeout="+limit.String())
		outage()
		controller := startReplica("") // without webhooks
		DeferCleanup(func() { controller.stop() })
		_, _, err := kubectl(ctx, "", "--namespace="+prefetched.namespace, "set", "image", "deployment/app", "main="+repository+":c")
		Expect(err).To(MatchError(ContainSubstring(`failed calling webhook "gate.sluice.dev"`)))
		prefetched.prefetch(ctx, ready, "a", "b")
		prefetched.expectRolling(ctx, "a", "b")
		timed.expectRolling(ctx, "a", "b")
		Eventually(timed.notes(ctx, hold.ReasonHoldTimedOut)).Should(ConsistOf(HavePrefix("Warning: Released after ")))
	})

	It("what became Ready or timed out meanwhile is released when it is back", func(ctx SpecContext) {
		const limit = 3 * time.Second
		prefetched, timed := holdingTenant(ctx), holdingTenant(ctx, "sluice.dev/hold-timeout="+limit.String())
		end := outage()
		prefetched.prefetch(ctx, ready, "a", "b")
		since, err := time.Parse(time.RFC3339, timed.deployment(ctx).Annotations[v1alpha1.HeldAtAnnotation])
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() time.Duration { return time.Since(since) }).Should(BeNumerically(">", limit))
		prefetched.expectHeld(ctx, "a")
		timed.expectHeld(ctx, "a")
		end()
		prefetched.expectRolling(ctx, "a", "b")
		timed.expectRolling(ctx, "a", "b")
		Eventually(timed.notes(ctx, hold.ReasonHoldTimedOut)).Should(HaveLen(1))
	})
})

var _ = Describe("With the controller down", Serial, func() {
	It("a hold that skips the gate and loses its label is found when it is back", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		end := outage()
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		t.overwrite(ctx, func(*appsv1.Deployment) {})
		t.expectOwnersPause(ctx, "a")
		end()
		t.expectRolling(ctx, "a", "b")
	})

	It("and one that then loses everything else is let go by the webhook", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		outage()
		hooks := startParts(sluice.address, false)
		DeferCleanup(func() { hooks.stop() })
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		t.overwrite(ctx, func(*appsv1.Deployment) {})
		t.expectOwnersPause(ctx, "a")
		t.overwrite(ctx, func(d *appsv1.Deployment) { d.Annotations = map[string]string{"example.com/program": "x"} })
		t.expectRolling(ctx, "a", "b")
	})
})

var _ = Describe("Two replicas", Serial, func() {
	It("release once, and the second takes over", func(ctx SpecContext) {
		outage() // of the one without leader election
		elect := func(o *ctrl.Options) {
			o.LeaderElection, o.LeaderElectionID, o.LeaderElectionNamespace = true, "sluice-controller", "sluice-system"
			o.LeaderElectionReleaseOnCancel = true
			o.RetryPeriod = ptr.To(200 * time.Millisecond)
		}
		// Webhooks are served by every replica, so also by the one that does not lead.
		leader := startReplica("", elect)
		DeferCleanup(func() { leader.stop() })
		Eventually(leader.elected).Should(BeClosed())
		standby := startReplica(sluice.address, elect)
		DeferCleanup(func() { standby.stop() })
		t := holdingTenant(ctx)
		Consistently(standby.elected, "500ms").ShouldNot(BeClosed())
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
		Eventually(t.notes(ctx, hold.ReasonReleased)).Should(HaveLen(1))
		Expect(standby.figure("sluice_gate_hold_duration_seconds")).To(BeZero())

		other := holdingTenant(ctx)
		leader.stop()
		other.prefetch(ctx, ready, "a", "b")
		other.expectRolling(ctx, "a", "b")
		Expect(standby.figure("sluice_gate_hold_duration_seconds", string(hold.EndReady))).To(Equal(1.0))
	})
})
