// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

var _ = Describe("A rollout waits for its own Pods' images", Serial, func() {
	// pooled has rolled out version a on the nodes of a pool, which has these nodes.
	pooled := func(ctx SpecContext, members ...string) tenant {
		t := newTenant(ctx)
		for _, name := range members {
			nodes.add(ctx, t.namespace+"-"+name, t.namespace)
		}
		t.prefetch(ctx, ready, "a")
		t.apply(ctx, "a")
		t.expectRolling(ctx, "a")
		t.kubectl(ctx, "patch", "deployment", "app", "-p",
			fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{"pool":%q}}}}}`, t.namespace))
		t.expectRolling(ctx, "a", "a")
		return t
	}
	node := func(t tenant, name string) string { return t.namespace + "-" + name }

	It("also where the template names the digest that the tag was resolved to", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, ready, "a", "b")
		for _, name := range []string{repository + "@" + digestOf("b"), repository + ":b@" + digestOf("b")} {
			Eventually(func() string {
				return t.kubectl(ctx, "set", "image", "deployment/app", "main="+name, "--dry-run=server", "-o", "jsonpath={.spec.paused}")
			}).Should(BeEmpty(), name)
		}
		By("holding another digest, and saying both")
		Expect(t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+"@"+digestOf("c"))).To(And(
			ContainSubstring("Warning: the rollout is held"), ContainSubstring(digestOf("c")), ContainSubstring(digestOf("b"))))
		t.expectHeld(ctx, "a")
	})

	It("and not for other images of its ImagePrefetch", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.prefetch(ctx, failing, "a", "b", "missing")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a", "a")
		reports(ctx, node(t, "1"), v1alpha1.ImagePresent, "b")
		t.expectRolling(ctx, "a", "a", "b")
		Eventually(t.notes(ctx, hold.ReasonReleased)).Should(ConsistOf(ContainSubstring("1 of 1 nodes that its Pods can run on have all images")))
	})

	It("says in numbers what is missing", func(ctx SpecContext) {
		t := pooled(ctx, "1", "2", "3")
		reports(ctx, node(t, "1"), v1alpha1.ImagePresent, "b")
		t.prefetch(ctx, pulling, "a", "b")
		Eventually(func() string {
			return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":b", "--dry-run=server")
		}).Should(ContainSubstring("2 of 3 nodes that its Pods can run on still lack " + repository + ":b"))
	})

	It("by what another ImagePrefetch of the namespace makes of a tag", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.prefetch(ctx, pulling, "a")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a", "a")
		reports(ctx, node(t, "1"), v1alpha1.ImagePresent, "b")
		t.expectHeld(ctx, "a", "a")
		t.prefetchNamed(ctx, "other", pulling, "b")
		t.expectRolling(ctx, "a", "a", "b")
	})

	It("and not where no node matches", func(ctx SpecContext) {
		t := pooled(ctx)
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/on-timeout=Hold")
		t.prefetch(ctx, pulling, "a", "b")
		Expect(t.setImage(ctx, "b")).To(ContainSubstring("Warning: the rollout is not held: no node has the labels"))
		t.expectRolling(ctx, "a", "a", "b")
		Eventually(t.notes(ctx, hold.ReasonNotHeld)).Should(ConsistOf(HavePrefix("Warning: Not held: no node has the labels")))
	})

	It("is released when the last matching node goes", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/on-timeout=Hold")
		t.prefetch(ctx, pulling, "a", "b")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a", "a")
		t.kubectl(ctx, "label", "node", node(t, "1"), "pool=other", "--overwrite")
		t.expectRolling(ctx, "a", "a", "b")
		Eventually(t.notes(ctx, hold.ReasonReleased)).Should(ConsistOf(And(HavePrefix("Warning: "), ContainSubstring("there is nothing to wait for"))))
	})

	It("also through an outage of all nodes", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.kubectl(ctx, "cordon", node(t, "1"))
		t.prefetch(ctx, pulling, "a", "b")
		Expect(t.setImage(ctx, "b")).To(ContainSubstring("no node that its Pods can run on takes Pods now"))
		t.expectHeld(ctx, "a", "a")
	})

	It("and not on nodes that came after the hold began", func(ctx SpecContext) {
		t := pooled(ctx, "1", "2")
		reports(ctx, node(t, "1"), v1alpha1.ImagePresent, "b")
		t.prefetch(ctx, pulling, "a", "b")
		t.setImage(ctx, "b")
		held := t.expectHeld(ctx, "a", "a")
		since, err := time.Parse(time.RFC3339, held.Annotations[v1alpha1.HeldAtAnnotation])
		Expect(err).NotTo(HaveOccurred())
		Eventually(time.Now).Should(BeTemporally(">", since.Add(time.Second)), "times have whole seconds")
		nodes.add(ctx, node(t, "3"), t.namespace)
		t.expectHeld(ctx, "a", "a")
		reports(ctx, node(t, "2"), v1alpha1.ImagePresent, "b")
		t.expectRolling(ctx, "a", "a", "b")
		Eventually(t.notes(ctx, hold.ReasonReleased)).Should(ConsistOf(ContainSubstring("1 joined later")))
	})

	It("and not on one bad node", func(ctx SpecContext) {
		t := pooled(ctx, "1", "2")
		reports(ctx, node(t, "1"), v1alpha1.ImagePresent, "b")
		t.prefetch(ctx, failing, "a", "b")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a", "a")
		reports(ctx, node(t, "2"), v1alpha1.ImageFailed, "b")
		t.expectRolling(ctx, "a", "a", "b")
		By("unless it is to be held whatever happens")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/on-timeout=Hold")
		reports(ctx, node(t, "1"), v1alpha1.ImagePresent, "b", "c")
		reports(ctx, node(t, "2"), v1alpha1.ImageFailed, "b", "c")
		t.prefetch(ctx, failing, "a", "b", "c")
		t.setImage(ctx, "c")
		t.expectHeld(ctx, "a", "a", "b")
	})

	It("and warns of nodes that its ImagePrefetch does not select", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.prefetch(ctx, ready, "a", "b")
		t.kubectl(ctx, "patch", "imageprefetch", "app", "--type=merge", "-p", `{"spec":{"nodeSelector":{"pool":"web"}}}`)
		t.prefetch(ctx, ready, "a", "b")
		Eventually(func() string {
			return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":b", "--dry-run=server")
		}).Should(ContainSubstring(`Warning: ImagePrefetch "app" does not select 1 of the 1 nodes`))
		Expect(t.notes(ctx, hold.ReasonNodesNotSelected)()).To(BeEmpty(), "a dry run leaves nothing")
		t.setImage(ctx, "b")
		t.expectRolling(ctx, "a", "a", "b")
		Eventually(t.notes(ctx, hold.ReasonNodesNotSelected)).Should(ConsistOf(HavePrefix("Warning: ImagePrefetch")))
	})

	It("and warns of them on creation, where kubectl describe shows it", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.kubectl(ctx, "patch", "imageprefetch", "app", "--type=merge", "-p", `{"spec":{"nodeSelector":{"pool":"web"}}}`)
		t.prefetch(ctx, ready, "a")
		manifest := strings.Replace(deploymentYAML(t.namespace, "other", "a"), "spec: {containers:",
			fmt.Sprintf("spec: {nodeSelector: {pool: %q}, containers:", t.namespace), 1)
		Eventually(func() string { return t.feed(ctx, manifest, "apply", "--dry-run=server") }).Should(ContainSubstring("does not select 1 of the 1 nodes"))
		t.feed(ctx, manifest, "apply")
		Eventually(func() string { return t.kubectl(ctx, "describe", "deployment", "other") }).Should(ContainSubstring(hold.ReasonNodesNotSelected))
	})

	It("as they are to be now, and not as they were before a refresh", func(ctx SpecContext) {
		t := runningTenant(ctx)
		t.prefetch(ctx, ready, "a", "b")
		t.kubectl(ctx, "annotate", "imageprefetch", "app", "sluice.dev/refresh=2")
		Eventually(func() string {
			return t.kubectl(ctx, "set", "image", "deployment/app", "main="+repository+":b", "--dry-run=server")
		}).Should(ContainSubstring(repository + ":b is to be resolved"))
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a")
	})

	It("and not for an ImagePrefetch that a policy denies, unless it is to be held whatever happens", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		denied := func(s *v1alpha1.ImagePrefetchStatus, c *metav1.Condition) {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonPolicyDenied, "no"
		}
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/on-timeout=Hold")
		t.prefetch(ctx, denied, "a", "b")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a", "a")
		t.kubectl(ctx, "annotate", "deployment", "app", "sluice.dev/on-timeout-")
		t.expectRolling(ctx, "a", "a", "b")
		Eventually(t.notes(ctx, hold.ReasonReleased)).Should(ConsistOf(And(HavePrefix("Warning: Released after"), ContainSubstring("PolicyDenied"))))
		By("once it is held no more")
		t.prefetch(ctx, denied, "a", "b", "c")
		t.setImage(ctx, "c")
		t.expectRolling(ctx, "a", "a", "b", "c")
		Eventually(t.notes(ctx, hold.ReasonNotHeld)).Should(ConsistOf(And(HavePrefix("Warning: Not held: waiting cannot help"), ContainSubstring("PolicyDenied"))))
	})

	It("and not for more than its placement asks: a release rests on it", func(ctx SpecContext) {
		t := pooled(ctx, "1")
		t.prefetch(ctx, pulling, "a", "b")
		t.setImage(ctx, "b")
		t.expectHeld(ctx, "a", "a")
		reports(ctx, "node-1", v1alpha1.ImagePresent, "b")
		DeferCleanup(func(ctx SpecContext) {
			Expect(client.IgnoreNotFound(api.Delete(ctx, &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}))).To(Succeed())
		})
		t.expectHeld(ctx, "a", "a")
		t.kubectl(ctx, "patch", "deployment", "app", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"pool":"web"}}}}}`)
		t.expectRolling(ctx, "a", "a", "b")
	})
})

var _ = Describe("An annotation of Sluice that has no effect", func() {
	const annotated = `apiVersion: %s
kind: %s
metadata:
  namespace: default
  name: annotated
  annotations: {%s}
spec:
  selector: {matchLabels: {app: annotated}}
  template:
    metadata: {labels: {app: annotated}, annotations: {%s}}
    spec: {containers: [{name: main, image: registry.example.com/org/app:a}]}
`
	warnings := func(ctx SpecContext, args ...any) string {
		_, warnings, err := kubectl(ctx, fmt.Sprintf(annotated, args...), "create", "--dry-run=server", "-f", "-")
		Expect(err).NotTo(HaveOccurred(), "it is accepted all the same")
		return warnings
	}
	DescribeTable("is accepted with a warning",
		func(ctx SpecContext, kind, onObject, onTemplate, says string) {
			Eventually(func() string { return warnings(ctx, "apps/v1", kind, onObject, onTemplate) }).Should(ContainSubstring(says))
		},
		Entry("misspelt", "Deployment", "sluice.dev/prefech: app", "", "Sluice knows no annotation sluice.dev/prefech on a Deployment"),
		Entry("on the Pod template", "Deployment", "", "sluice.dev/prefetch: app", "have no effect on a Pod template"),
		Entry("on another kind", "DaemonSet", "sluice.dev/prefetch: app", "", "only rollouts of Deployments wait for their images: on a DaemonSet"),
	)
	It("is the only one that is warned of", func(ctx SpecContext) {
		Expect(warnings(ctx, "apps/v1", "DaemonSet", "example.com/x: some", "")).To(BeEmpty())
		Expect(warnings(ctx, "apps/v1", "Deployment", "sluice.dev/gate: skip, sluice.dev/prefetch: app", "")).NotTo(ContainSubstring("Sluice"))
	})
})
