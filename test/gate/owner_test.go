// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

var _ = Describe("The owner's own pause", func() {
	It("does not keep the images that ran before the gate from coming back", func(ctx SpecContext) {
		t := newTenant(ctx)
		ungated := func(tag string) string {
			return strings.Replace(deploymentYAML(t.namespace, "app", tag), "sluice.dev/prefetch: app", "", 1)
		}
		t.feed(ctx, ungated("a"), "apply")
		t.expectRolling(ctx, "a")
		t.kubectl(ctx, "rollout", "pause", "deployment", "app")
		Eventually(func() int32 { return t.observed(ctx).Status.UpdatedReplicas }).Should(BeEquivalentTo(1))
		t.prefetch(ctx, pulling, "b")
		t.apply(ctx, "b")
		t.kubectl(ctx, "rollout", "resume", "deployment", "app")
		t.expectHeld(ctx, "a")
		t.setImage(ctx, "a")
		t.expectRolling(ctx, "a")
	})

	It("before a hold stands, whatever becomes of the images, and resuming is what may be held", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.kubectl(ctx, "rollout", "pause", "deployment", "app")
		t.prefetch(ctx, pulling, "a", "b")
		t.setImage(ctx, "b")
		t.expectOwnersPause(ctx, "a")
		t.prefetch(ctx, ready, "a", "b")
		t.kubectl(ctx, "set", "env", "deployment/app", "V=1")
		t.expectOwnersPause(ctx, "a")
		t.prefetch(ctx, pulling, "a", "b", "c")
		t.setImage(ctx, "c")
		Expect(t.kubectl(ctx, "rollout", "resume", "deployment", "app")).To(ContainSubstring("Warning: the rollout is not resumed but held"))
		t.expectHeld(ctx, "a")
		t.prefetch(ctx, ready, "a", "b", "c")
		t.expectRolling(ctx, "a", "c")
	})

	It("after a hold stands", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
		t.kubectl(ctx, "rollout", "pause", "deployment", "app")
		t.prefetch(ctx, ready, "a", "b", "c")
		t.setImage(ctx, "c")
		t.expectOwnersPause(ctx, "a", "b")
	})

	DescribeTable("during a hold ends the hold and stands",
		func(ctx SpecContext, pause func(SpecContext, tenant) string) {
			t := holdingTenant(ctx)
			Expect(pause(ctx, t)).To(ContainSubstring("is now paused by you"))
			t.prefetch(ctx, ready, "a", "b")
			t.kubectl(ctx, "annotate", "deployment", "app", "example.com/touch=1")
			t.expectOwnersPause(ctx, "a")
			t.kubectl(ctx, "rollout", "resume", "deployment", "app")
			t.expectRolling(ctx, "a", "b")
		},
		Entry("by client-side apply", func(ctx SpecContext, t tenant) string {
			return t.apply(ctx, "b", "paused: true")
		}),
		Entry("by server-side apply", func(ctx SpecContext, t tenant) string {
			return t.feed(ctx, deploymentYAML(t.namespace, "app", "b", "paused: true"), "apply", "--server-side", "--field-manager=team", "--force-conflicts")
		}),
	)

	DescribeTable("stands when it opts out of the gate in the same breath",
		func(ctx SpecContext, command ...string) {
			t := holdingTenant(ctx)
			t.feed(ctx, strings.Replace(deploymentYAML(t.namespace, "app", "b", "paused: true"), "sluice.dev/prefetch: app", "sluice.dev/prefetch: app, sluice.dev/gate: skip", 1), command...)
			Eventually(func() map[string]string { return t.deployment(ctx).Labels }).ShouldNot(HaveKey(v1alpha1.HoldLabel))
			t.expectOwnersPause(ctx, "a")
			Eventually(t.notes(ctx, hold.ReasonReleased)).Should(ConsistOf(ContainSubstring("paused by its owner")))
			t.kubectl(ctx, "rollout", "resume", "deployment", "app")
			t.expectRolling(ctx, "a", "b")
		},
		Entry("by client-side apply", "apply"),
		Entry("by server-side apply", "apply", "--server-side", "--field-manager=team", "--force-conflicts"),
	)

	It("is not meant by a server-side manifest with paused: false: opting out by hand releases", func(ctx SpecContext) {
		t := newTenant(ctx)
		apply := func(tag string) {
			t.feed(ctx, deploymentYAML(t.namespace, "app", tag, "paused: false"), "apply", "--server-side", "--field-manager=team")
		}
		t.prefetch(ctx, ready, "a")
		apply("a")
		t.expectRolling(ctx, "a")
		apply("b")
		t.expectHeld(ctx, "a")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/gate=skip")
		t.expectRolling(ctx, "a", "b")
	})

	It("cannot be said during a hold by kubectl rollout pause, which says so itself", func(ctx SpecContext) {
		_, _, err := kubectl(ctx, "", "--namespace="+holdingTenant(ctx).namespace, "rollout", "pause", "deployment", "app")
		Expect(err).To(MatchError(ContainSubstring("is already paused")))
	})

	DescribeTable("is not meant by what programs do as well: the hold goes on, and ends with a release",
		func(ctx SpecContext, write func(SpecContext, tenant)) {
			t := holdingTenant(ctx)
			since := t.deployment(ctx).Annotations[v1alpha1.HeldAtAnnotation]
			write(ctx, t)
			Expect(t.expectHeld(ctx, "a").Annotations[v1alpha1.HeldAtAnnotation]).To(Equal(since))
			t.prefetch(ctx, ready, "a", "b")
			t.expectRolling(ctx, "a", "b")
		},
		Entry("applying a manifest that was read from the held Deployment", func(ctx SpecContext, t tenant) {
			exported := t.kubectl(ctx, "get", "deployment", "app", "--output=yaml")
			t.feed(ctx, exported, "apply")
		}),
		Entry("applying such a manifest on the server", func(ctx SpecContext, t tenant) {
			exported := t.kubectl(ctx, "get", "deployment", "app", "--output=yaml")
			t.feed(ctx, exported, "apply", "--server-side", "--field-manager=program", "--force-conflicts")
		}),
		Entry("kubectl replace of what was read, with other labels, which it records as applied", func(ctx SpecContext, t tenant) {
			t.feed(ctx, t.relabelled(ctx), "replace", "--save-config")
		}),
		Entry("applying that", func(ctx SpecContext, t tenant) {
			t.feed(ctx, t.relabelled(ctx), "apply")
		}),
		Entry("kubectl replace of a paused manifest", func(ctx SpecContext, t tenant) {
			t.feed(ctx, deploymentYAML(t.namespace, "app", "b", "paused: true"), "replace")
		}),
		Entry("taking both marks off", func(ctx SpecContext, t tenant) {
			t.kubectl(ctx, "patch", "deployment", "app", "--type=merge",
				"-p", `{"metadata":{"labels":{"sluice.dev/hold":null},"annotations":{"sluice.dev/held-at":null}}}`)
		}),
		Entry("overwriting labels and annotations", func(ctx SpecContext, t tenant) {
			t.overwrite(ctx, func(d *appsv1.Deployment) {
				d.Annotations = map[string]string{v1alpha1.PrefetchAnnotation: "app", "example.com/program": "x"}
			})
		}),
	)

	It("is not left behind by kubectl replace of what was read, with other labels and without the gate", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.feed(ctx, t.relabelled(ctx, v1alpha1.PrefetchAnnotation), "replace", "--save-config")
		t.expectRolling(ctx, "a", "b")
	})

	It("is not left behind by a program that overwrites annotations, the gate's among them", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.overwrite(ctx, func(d *appsv1.Deployment) { d.Annotations = map[string]string{"example.com/program": "x"} })
		t.expectRolling(ctx, "a", "b")
	})

	DescribeTable("is not left behind by a program that skips the gate and overwrites labels",
		func(ctx SpecContext, edit func(*appsv1.Deployment)) {
			t := holdingTenant(ctx)
			t.overwrite(ctx, func(d *appsv1.Deployment) {
				edit(d)
				d.Annotations[v1alpha1.GateAnnotation] = v1alpha1.GateSkip
			})
			t.expectRolling(ctx, "a", "b")
		},
		Entry("alone", func(*appsv1.Deployment) {}),
		Entry("and annotations", func(d *appsv1.Deployment) {
			d.Annotations = map[string]string{v1alpha1.PrefetchAnnotation: "app"}
		}),
	)

	It("is not left behind by one that changes the template as well", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.overwrite(ctx, func(d *appsv1.Deployment) {
			d.Annotations = map[string]string{v1alpha1.PrefetchAnnotation: "app"}
			d.Spec.Template.Spec.Containers[0].Image = repository + ":c"
		})
		t.expectHeld(ctx, "a")
		t.prefetch(ctx, ready, "c")
		t.expectRolling(ctx, "a", "c")
	})

	It("is not meant by a label that goes: a hold is kept", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		t.kubectl(ctx, "label", "deployment", "app", v1alpha1.HoldLabel+"-")
		t.expectHeld(ctx, "a")
		t.prefetch(ctx, ready, "a", "b")
		t.expectRolling(ctx, "a", "b")
	})
})

// overwrite reads the Deployment, puts labels of its own in the place of all others, and
// writes it back.
func (t tenant) overwrite(ctx context.Context, edit func(*appsv1.Deployment)) {
	GinkgoHelper()
	d := t.observed(ctx)
	d.Labels = map[string]string{"program": "x"}
	edit(d)
	Expect(api.Update(ctx, d)).To(Succeed())
}

var _ = Describe("A held Deployment", func() {
	It("is held again when it is resumed by hand, with a warning", func(ctx SpecContext) {
		t := holdingTenant(ctx)
		since := t.deployment(ctx).Annotations[v1alpha1.HeldAtAnnotation]
		Expect(t.kubectl(ctx, "rollout", "resume", "deployment", "app")).To(ContainSubstring("Warning: the rollout is not resumed but held"))
		Expect(t.expectHeld(ctx, "a").Annotations[v1alpha1.HeldAtAnnotation]).To(Equal(since), "the timeout goes on")
	})

	DescribeTable("stays as it is however often its manifest is sent",
		func(ctx SpecContext, extra []string, command ...string) {
			send := func(t tenant, tag string) string {
				return t.feed(ctx, deploymentYAML(t.namespace, "app", tag, extra...), command...)
			}
			t := newTenant(ctx)
			t.prefetch(ctx, ready, "a")
			t.feed(ctx, deploymentYAML(t.namespace, "app", "a", extra...), append([]string{"apply"}, command[1:]...)...)
			t.expectRolling(ctx, "a")
			t.prefetch(ctx, pulling, "a", "b")
			send(t, "b")
			t.expectHeld(ctx, "a")
			send(t, "b")
			before := t.expectHeld(ctx, "a")
			for range 3 {
				send(t, "b")
				after := t.expectHeld(ctx, "a")
				Expect(after.Spec).To(Equal(before.Spec))
				Expect(after.Annotations[v1alpha1.HeldAtAnnotation]).To(Equal(before.Annotations[v1alpha1.HeldAtAnnotation]))
				Expect(after.Generation).To(Equal(before.Generation), "nothing changed")
			}
			t.prefetch(ctx, ready, "a", "b")
			t.expectRolling(ctx, "a", "b")
			send(t, "b")
			t.expectRolling(ctx, "a", "b")
		},
		Entry("client-side apply", nil, "apply"),
		Entry("client-side apply with paused: false", []string{"paused: false"}, "apply"),
		Entry("server-side apply", nil, "apply", "--server-side", "--field-manager=team"),
		Entry("server-side apply with paused: false", []string{"paused: false"}, "apply", "--server-side", "--field-manager=team"),
		Entry("replace", nil, "replace"),
		Entry("replace with paused: false", []string{"paused: false"}, "replace"),
	)
})
