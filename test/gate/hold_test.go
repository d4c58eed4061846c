// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

var _ = Describe("A gated Deployment", func() {
	It("is held until its ImagePrefetch is Ready, and then rolls out", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, pulling, "a", "b")
		// The webhook's cache may be a moment behind: this is about what it knows.
		Eventually(func() string {
			return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":b", "--dry-run=server")
		}).Should(ContainSubstring("1 of 1 nodes"))
		Expect(t.setImage(ctx, "b")).To(ContainSubstring("Warning: the rollout is held (for at most 10m): " +
			`ImagePrefetch "app" is not Ready: 1 of 1 nodes that its Pods can run on still lack ` + repository + ":b"))
		held := t.expectHeld(ctx, "a")
		Expect(t.kubectl(ctx, "get", "deployments", "-L", v1alpha1.HoldLabel)).To(ContainSubstring(held.Labels[v1alpha1.HoldLabel]))
		Eventually(t.notes(ctx, hold.ReasonWaitingForNodes)).Should(ConsistOf(ContainSubstring("Normal: Held: ")))
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
		Eventually(t.notes(ctx, hold.ReasonReleased)).Should(ConsistOf(HavePrefix("Normal: Released after ")))
	})

	It("is held when it is created before its ImagePrefetch", func(ctx SpecContext) {
		t := newTenant(ctx)
		Expect(t.apply(ctx, "a")).To(ContainSubstring(`ImagePrefetch "app" does not exist`))
		t.expectHeld(ctx)
		Eventually(t.notes(ctx, hold.ReasonPrefetchMissing)).Should(ConsistOf(HavePrefix("Warning: Held: ")))
		t.prefetch(ctx, pulling, "a")
		t.expectHeld(ctx)
		t.prefetch(ctx, ready, "a")
		t.expectRolling(ctx, "a")
	})

	It("is held while its ImagePrefetch lists other tags", func(ctx SpecContext) {
		t := runningTenant(ctx)
		Expect(t.setImage(ctx, "b")).To(ContainSubstring(`ImagePrefetch "app" does not list ` + repository + ":b"))
		t.expectHeld(ctx, "a")
		Eventually(t.notes(ctx, hold.ReasonImagesNotListed)).Should(HaveLen(1))
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
	})

	It("is not held at all when the ImagePrefetch is Ready already", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, ready, "a", "b")
		// The webhook's cache may be a moment behind: this is about what it knows.
		Eventually(func() string {
			return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":b", "--dry-run=server", "-o", "jsonpath={.spec.paused}")
		}).Should(BeEmpty())
		Expect(t.setImage(ctx, "b")).NotTo(ContainSubstring("Warning"))
		Expect(t.deployment(ctx).Spec.Paused).To(BeFalse())
		t.expectRolling(ctx, "a", "b")
		Expect(t.notes(ctx, hold.ReasonWaitingForNodes)()).To(BeEmpty())
	})

	It("stays held when the ImagePrefetch fails on some nodes, and says where and why", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.prefetch(ctx, failing, "a", "b")
		Eventually(t.notes(ctx, hold.ReasonPrefetchFailing)).Should(ConsistOf(
			`Warning: Held: ImagePrefetch "app" is not Ready: 1 of 1 nodes that its Pods can run on still lack ` + repository + ":b: ImagePullUnauthorized on node-7"))
		t.expectHeld(ctx, "a")
	})

	It("is released when the failures are allowed", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.prefetch(ctx, allowedFailure, "a", "b")
		t.expectRolling(ctx, "a", "b")
	})

	It("stays held when the ImagePrefetch is deleted, until there is one again", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.kubectl(ctx, "delete", "imageprefetch", "app")
		Eventually(t.notes(ctx, hold.ReasonPrefetchMissing)).Should(HaveLen(1))
		t.expectHeld(ctx, "a")
		t.prefetch(ctx, ready, "b")
		t.expectRolling(ctx, "a", "b")
	})

	It("is released after its hold timeout, with a warning", func(ctx SpecContext) {
		before := sluice.figure("sluice_gate_hold_duration_seconds", string(hold.EndTimedOut))
		t := runningTenant(ctx)
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/hold-timeout=2s")
		t.prefetch(ctx, pulling, "a", "b")
		Expect(t.setImage(ctx, "b")).To(ContainSubstring("for at most 2s"))
		t.expectRolling(ctx, "a", "b")
		Eventually(t.notes(ctx, hold.ReasonHoldTimedOut)).Should(ConsistOf(And(HavePrefix("Warning: Released after 2s without its images"), ContainSubstring("1 of 1 nodes"))))
		Expect(sluice.figure("sluice_gate_hold_duration_seconds", string(hold.EndTimedOut))).To(Equal(before + 1))
	})

	It("is held further after its hold timeout if it says so, with a warning", func(ctx SpecContext) {
		t := holdingTenant(ctx, "sluice.dev/hold-timeout=1s", "sluice.dev/on-timeout=Hold")
		Eventually(t.notes(ctx, hold.ReasonHoldTimedOut)).Should(ConsistOf(HavePrefix("Warning: Still held after its hold timeout")))
		t.expectHeld(ctx, "a")
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
	})

	It("waits for newer images when it gets them during a hold", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		first := t.deployment(ctx)
		t.setImage(ctx, "c")
		second := t.expectHeld(ctx, "a")
		Expect(second.Labels[v1alpha1.HoldLabel]).NotTo(Equal(first.Labels[v1alpha1.HoldLabel]))
		t.prefetch(ctx, ready, "a", "b")
		Eventually(t.notes(ctx, hold.ReasonImagesNotListed)).Should(HaveLen(1))
		t.expectHeld(ctx, "a")
		t.prefetch(ctx, ready, "a", "b", "c")
		t.expectRolling(ctx, "a", "c")
	})

	It("is released at once when its images are set back during a hold", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.setImage(ctx, "a")
		Expect(t.deployment(ctx).Spec.Paused).To(BeFalse())
		t.expectRolling(ctx, "a")
	})

	It("can be scaled during a hold and outside, by people and autoscalers", func(ctx SpecContext) {
		for _, t := range []tenant{runningTenant(ctx), holdingTenant(ctx)} {
			held := t.deployment(ctx).Spec.Paused
			t.kubectl(ctx, "scale", "deployment", "app", "--replicas=3")
			t.kubectl(ctx, "patch", "deployment", "app", "--subresource=scale", "--type=merge", "-p", `{"spec":{"replicas":4}}`)
			d := t.observed(ctx)
			Expect(d.Spec.Paused).To(Equal(held))
			Expect(*d.Spec.Replicas).To(Equal(int32(4)))
			Expect(t.versions(ctx)).To(HaveExactElements("a"))
		}
	})

	It("takes an env-only change: rolled out outside a hold, part of the held rollout during one", func(ctx SpecContext) {
		running := runningTenant(ctx)
		running.kubectl(ctx, "set", "env", "deployment/app", "V=1")
		running.expectRolling(ctx, "a", "a")
		held := holdingTenant(ctx)
		since := held.deployment(ctx).Annotations[v1alpha1.HeldAtAnnotation]
		held.kubectl(ctx, "set", "env", "deployment/app", "V=1")
		Expect(held.expectHeld(ctx, "a").Annotations[v1alpha1.HeldAtAnnotation]).To(Equal(since), "it is the same hold")
	})

	It("is restarted outside a hold; during one kubectl itself refuses", func(ctx SpecContext) {
		running := runningTenant(ctx)
		running.kubectl(ctx, "rollout", "restart", "deployment", "app")
		running.expectRolling(ctx, "a", "a")
		_, _, err := kubectl(ctx, "", "--namespace="+holdingTenant(ctx).namespace, "rollout", "restart", "deployment", "app")
		Expect(err).To(MatchError(ContainSubstring("paused")))
	})

	It("passes at once when it is undone to a version that was once released", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, ready, "a", "b")
		t.setImage(ctx, "b")
		t.expectRolling(ctx, "a", "b")
		t.kubectl(ctx, "delete", "imageprefetch", "app")
		Expect(t.kubectl(ctx, "rollout", "undo", "deployment", "app")).NotTo(ContainSubstring("held"))
		Expect(t.deployment(ctx).Spec.Paused).To(BeFalse())
		t.expectRolling(ctx, "b", "a")
	})

	It("is not undone during a hold, as kubectl itself refuses", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, ready, "a", "b")
		t.setImage(ctx, "b")
		t.expectRolling(ctx, "a", "b")
		t.setImage(ctx, "c")
		t.expectHeld(ctx, "a", "b")
		_, _, err := kubectl(ctx, "", "--namespace="+t.namespace, "rollout", "undo", "deployment", "app")
		Expect(err).To(MatchError(ContainSubstring("paused")))
	})

	It("passes at once when it is rolled back by any means, with its ImagePrefetch gone on", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, ready, "b")
		t.setImage(ctx, "b")
		t.expectRolling(ctx, "a", "b")
		t.prefetch(ctx, pulling, "c")
		t.setImage(ctx, "c")
		t.expectHeld(ctx, "a", "b")
		By("setting the image")
		Expect(t.setImage(ctx, "a")).NotTo(ContainSubstring("held"))
		t.expectRolling(ctx, "b", "a")
		By("undoing to a version whose ReplicaSet has an older record")
		Expect(t.kubectl(ctx, "rollout", "undo", "deployment", "app")).NotTo(ContainSubstring("held"))
		t.expectRolling(ctx, "a", "b")
		By("applying the old manifest")
		Expect(t.apply(ctx, "a")).NotTo(ContainSubstring("held"))
		t.expectRolling(ctx, "b", "a")
		By("replacing it with the old manifest, which has no record")
		Expect(t.feed(ctx, deploymentYAML(t.namespace, "app", "b"), "replace")).NotTo(ContainSubstring("held"))
		t.expectRolling(ctx, "a", "b")
	})

	It("passes when it is rolled back to what ran before it was gated, or under skip", func(ctx SpecContext) {
		t := newTenant(ctx)
		t.feed(ctx, strings.Replace(deploymentYAML(t.namespace, "app", "a"), "sluice.dev/prefetch: app", "example.com/note: none", 1), "apply")
		t.expectRolling(ctx, "a")
		By("gating it and changing its image in one write")
		t.apply(ctx, "b")
		t.expectHeld(ctx, "a")
		t.setImage(ctx, "a")
		t.expectRolling(ctx, "a")
		By("skipping the gate")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		t.setImage(ctx, "c")
		t.expectRolling(ctx, "a", "c")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate-")
		t.setImage(ctx, "d")
		t.expectHeld(ctx, "a", "c")
		Expect(t.setImage(ctx, "c")).NotTo(ContainSubstring("held"))
		t.expectRolling(ctx, "a", "c")
	})

	It("skips the gate again when it is undone to a version that skipped it", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		t.setImage(ctx, "b")
		t.expectRolling(ctx, "a", "b")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate-")
		t.prefetch(ctx, ready, "a", "c")
		t.setImage(ctx, "c")
		t.expectRolling(ctx, "a", "b", "c")
		t.kubectl(ctx, "rollout", "undo", "deployment", "app")
		Expect(t.expectRolling(ctx, "a", "c", "b").Annotations).To(HaveKeyWithValue(v1alpha1.GateAnnotation, v1alpha1.GateSkip))
		By("ending it as the documentation says")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate-")
		t.setImage(ctx, "d")
		t.expectHeld(ctx, "a", "c", "b")
	})

	It("is released when it opts out during a hold", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		t.expectRolling(ctx, "a", "b")
	})

	It("is released when it is no longer gated", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/prefetch-")
		t.expectRolling(ctx, "a", "b")
	})

	It("is never frozen when it becomes gated in the middle of a rollout", func(ctx SpecContext) {
		t := newTenant(ctx)
		t.apply(ctx, "a")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/prefetch-")
		t.expectRolling(ctx, "a")
		t.setImage(ctx, "b")
		Expect(t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/prefetch=app")).NotTo(ContainSubstring("held"))
		t.expectRolling(ctx, "a", "b")
		By("holding what comes next")
		t.setImage(ctx, "c")
		t.expectHeld(ctx, "a", "b")
	})

	It("keeps its old Pods with the Recreate strategy, too", func(ctx SpecContext) {
		t := newTenant(ctx)
		t.prefetch(ctx, ready, "a")
		t.apply(ctx, "a", "strategy: {type: Recreate}")
		t.expectRolling(ctx, "a")
		t.prefetch(ctx, pulling, "a", "b")
		t.setImage(ctx, "b")
		d := t.expectHeld(ctx, "a")
		Expect(d.Status.Replicas).To(Equal(int32(1)))
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
	})

	It("is held when it is scaled to zero, and scaled up during the hold runs the old version", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.kubectl(ctx, "scale", "deployment", "app", "--replicas=0")
		t.prefetch(ctx, pulling, "a", "b")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a")
		t.kubectl(ctx, "scale", "deployment", "app", "--replicas=2")
		t.expectHeld(ctx, "a")
		Eventually(func() int32 { return t.deployment(ctx).Status.Replicas }).Should(Equal(int32(2)))
	})

	It("is told, scaled to zero, that scaling up starts the held version where that has a ReplicaSet", func(ctx SpecContext) {
		t := newTenant(ctx)
		for _, tag := range []string{"a", "b"} {
			t.feed(ctx, strings.Replace(deploymentYAML(t.namespace, "app", tag), "sluice.dev/prefetch: app", "", 1), "apply")
		}
		t.expectRolling(ctx, "a", "b")
		t.kubectl(ctx, "scale", "deployment", "app", "--replicas=0")
		t.prefetch(ctx, pulling, "a", "b")
		t.kubectl(ctx, "annotate", "deployment", "app", v1alpha1.PrefetchAnnotation+"=app")
		Expect(t.setImage(ctx, "a")).To(ContainSubstring("should these images have run before, scaling it up starts them all the same"))
		t.expectHeld(ctx, "b", "a") // in the order of their revisions
		t.kubectl(ctx, "scale", "deployment", "app", "--replicas=2")
		Eventually(func() int32 { return t.observed(ctx).Status.UpdatedReplicas }).Should(BeEquivalentTo(2))
		Expect(t.deployment(ctx).Spec.Paused).To(BeTrue())
	})

	It("is not stored by a dry run, which shows the hold", func(ctx SpecContext) {
		t := runningTenant(ctx)
		before := t.deployment(ctx)
		t.prefetch(ctx, pulling, "a", "b")
		Eventually(func() string {
			return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":b", "--dry-run=server", "-o", "jsonpath={.spec.paused}")
		}).Should(HavePrefix("true"))
		Expect(t.deployment(ctx).Generation).To(Equal(before.Generation))
	})

	It("keeps kubectl rollout status waiting", func(ctx SpecContext) {
		_, _, err := kubectl(ctx, "", "--namespace="+holdingTenant(ctx).namespace, "rollout", "status", "deployment", "app", "--timeout=1s")
		Expect(err).To(MatchError(ContainSubstring("timed out")))
	})

	It("counts as held for as long as it is", func(ctx SpecContext) {
		active := func() float64 { return sluice.figure("sluice_gate_holds_active") }
		before := active()
		t := holdingTenant(ctx)
		Eventually(active).Should(Equal(before + 1))
		t.kubectl(ctx, "delete", "deployment", "app")
		Eventually(active).Should(Equal(before))
	})
})
