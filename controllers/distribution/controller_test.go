// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"context"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func keyOf(name string) client.ObjectKey { return client.ObjectKey{Name: name} }

var _ = Describe("Distribution controller", func() {
	var nodes *agents
	BeforeEach(func() { nodes = runAgents() })

	Context("when an image is on no node yet", func() {
		It("sends one node upstream and the others to the mirror, and then reports Ready", func(ctx SpecContext) {
			names := createNodes(ctx, 5)
			c := start()
			prefetch := createPrefetch(ctx, "app", ofImages(app, sidecar))

			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			for _, image := range []string{app, sidecar} {
				Expect(nodes.upstream(digestOf(image, 1))).To(HaveLen(1))
				Expect(nodes.mostSeeds(image)).To(Equal(1))
				Expect(nodes.heads(image)).To(Equal(1))
			}
			Expect(nodes.upstream(digestOf(app, 1))).To(Equal(nodes.upstream(digestOf(sidecar, 1))),
				"images of one prefetch share a seed, so that shared layers come once")

			status := statusOf(ctx, prefetch)
			Eventually(status).Should(And(
				HaveField("DesiredNodes", BeEquivalentTo(5)),
				HaveField("ReadyNodes", BeEquivalentTo(5)),
				HaveField("PullingNodes", BeEquivalentTo(0)),
				HaveField("FailedNodes", BeEquivalentTo(0)),
				messageOf(v1alpha1.ConditionReady, Equal("5 of 5 nodes have all 2 images")),
				haveCondition(v1alpha1.ConditionDegraded, metav1.ConditionFalse, v1alpha1.ReasonAsExpected),
				HaveField("Images", ConsistOf(
					v1alpha1.ImageStatus{Name: app, Digest: digestOf(app, 1), SizeBytes: 1000, ReadyNodes: 5, UpstreamPulls: 1},
					v1alpha1.ImageStatus{Name: sidecar, Digest: digestOf(sidecar, 1), SizeBytes: 1000, ReadyNodes: 5, UpstreamPulls: 1},
				)),
			))
			for _, name := range names {
				var set v1alpha1.NodeImageSet
				var node corev1.Node
				Expect(api.Get(ctx, keyOf(name), &set)).To(Succeed())
				Expect(api.Get(ctx, keyOf(name), &node)).To(Succeed())
				Expect(set.OwnerReferences).To(ConsistOf(metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}))
			}
			Eventually(eventsOn(ctx, prefetch)).Should(And(
				HaveExactElements(HavePrefix("Normal "), HavePrefix("Normal "), Equal("Normal AllNodesHoldImages")),
				ContainElements("Normal WaitingForSeeds", "Normal Distributing")))
			Expect(metric(c, "sluice_imageprefetch_time_to_ready_seconds")).To(Equal(1.0))
			Expect(metric(c, "sluice_pulls_assigned_total", "registry_policy", "Default")).To(Equal(2.0))
			Expect(metric(c, "sluice_pulls_assigned_total", "registry_policy", "Mirror")).To(Equal(8.0))
			Expect(metric(c, "sluice_seeds_replaced_total")).To(BeZero())
		})

		It("writes little, and nothing once all is done", func(ctx SpecContext) {
			createNodes(ctx, 10)
			time := &skewedClock{}
			c := start(func(s *settings) { s.clock = time })
			prefetch := createPrefetch(ctx, "app", ofImages(app, sidecar))
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			sets, statuses := c.requests.writesTo("nodeimagesets"), c.requests.writesTo("imageprefetches")
			// Twenty images on nodes. Each agent writes twice, Pulling and Present, for the
			// two images together: that leaves two of the three writes for each.
			Expect(sets+statuses).To(BeNumerically("<=", 40), "NodeImageSets %d, ImagePrefetches %d", sets, statuses)

			before := versionOf(ctx, prefetch)
			time.forward(agentTimeout) // whatever was put off is due by now
			update(ctx, createNode(ctx, "elsewhere", labelled("kubernetes.io/os", "windows"), func(node *corev1.Node) {
				node.Status.NodeInfo.OperatingSystem = "windows"
			}), func(node *corev1.Node) { node.Labels["moved"] = "yes" }) // starts passes that change nothing
			Consistently(func() string { return versionOf(ctx, prefetch) }).Should(Equal(before))
			Expect(c.requests.writesTo("imageprefetches")).To(Equal(statuses))
		})

		It("takes the image from a node that has it already", func(ctx SpecContext) {
			createNodes(ctx, 2)
			nodes.change(func(a *agents) { a.store("node-3", digestOf(app, 1)) })
			createNode(ctx, "node-3", func(node *corev1.Node) {
				node.Status.Images = []corev1.ContainerImage{{Names: []string{app}}}
			})
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Expect(nodes.upstream(digestOf(app, 1))).To(BeEmpty())
		})
	})

	Context("when two prefetches want the same image", func() {
		It("still sends one node upstream, and asks what the tag means once for each", func(ctx SpecContext) {
			createNodes(ctx, 3)
			start()
			first := createPrefetch(ctx, "first")
			second := createPrefetch(ctx, "second", ofImages("registry.sluice.test/demo/app:v1", sidecar))
			for _, prefetch := range []*v1alpha1.ImagePrefetch{first, second} {
				Eventually(statusOf(ctx, prefetch)).Should(beReady())
			}
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveLen(1))
			Expect(nodes.mostSeeds(app)).To(Equal(1))
			Expect(nodes.heads(app)).To(BeNumerically("<=", 2))
		})

		It("leaves the first Ready while the tag cannot be resolved for the second", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			first := createPrefetch(ctx, "first")
			Eventually(statusOf(ctx, first)).Should(beReady())
			nodes.change(func(a *agents) {
				a.faults[""] = fault{v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable, "connection refused"}
			})
			second := createPrefetch(ctx, "second")
			Eventually(statusOf(ctx, second)).Should(And(notReady(v1alpha1.ReasonNodesFailed),
				HaveField("Failures", ContainElement(And(HaveField("Reason", v1alpha1.ReasonRegistryUnavailable), HaveField("Message", "connection refused"))))))
			nodes.change(func(a *agents) { clear(a.faults) })
			Eventually(statusOf(ctx, second)).Should(beReady())
			Expect(statusOf(ctx, first)(Default)).To(beReady())
			told := eventsOn(ctx, first)(Default)
			Expect(told).NotTo(BeEmpty())
			Expect(slices.Index(told, "Normal AllNodesHoldImages")).To(Equal(len(told)-1), "it was Ready once, and has been ever since: %q", told)
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveLen(1))
		})

		It("reports an image that is listed under two names under both", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			prefetch := createPrefetch(ctx, "app", ofImages("nginx", "docker.io/library/nginx:latest"))
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Expect(nodes.upstream(digestOf("docker.io/library/nginx:latest", 1))).To(HaveLen(1))
			Expect(statusOf(ctx, prefetch)(Default).Images).To(HaveExactElements(
				And(HaveField("Name", "nginx"), HaveField("ReadyNodes", BeEquivalentTo(2))),
				And(HaveField("Name", "docker.io/library/nginx:latest"), HaveField("ReadyNodes", BeEquivalentTo(2)))))
		})
	})

	Context("when a tag moves", func() {
		It("asks again on a refresh, and on nothing else", func(ctx SpecContext) {
			createNodes(ctx, 3)
			c := start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			nodes.change(func(a *agents) { a.tags[app] = digestOf(app, 2) })
			c.stop()
			start()
			createNode(ctx, "node-4")
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(4))))
			Expect(nodes.heads(app)).To(Equal(1))
			Expect(nodes.upstream(digestOf(app, 2))).To(BeEmpty())

			update(ctx, prefetch, func(p *v1alpha1.ImagePrefetch) {
				p.Annotations = map[string]string{v1alpha1.RefreshAnnotation: "now"}
			})
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("Images", ConsistOf(And(
				HaveField("Digest", digestOf(app, 2)), HaveField("Refresh", "now"), HaveField("ReadyNodes", BeEquivalentTo(4)))))))
			Expect(nodes.heads(app)).To(Equal(2))
			Expect(nodes.upstream(digestOf(app, 2))).To(HaveLen(1))
		})

		It("asks nothing where an edit changes no image, and only about an image that is added", func(ctx SpecContext) {
			createNodes(ctx, 3)
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			nodes.change(func(a *agents) { a.tags[app] = digestOf(app, 2) })
			update(ctx, prefetch, func(p *v1alpha1.ImagePrefetch) { p.Spec.FailureTolerance = ptr.To(intstr.FromInt32(1)) })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("ObservedGeneration", BeEquivalentTo(2))))
			update(ctx, prefetch, func(p *v1alpha1.ImagePrefetch) { p.Spec.Images = append(p.Spec.Images, sidecar) })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("ObservedGeneration", BeEquivalentTo(3))))
			Expect(nodes.heads(app)).To(Equal(1))
			Expect(nodes.heads(sidecar)).To(Equal(1))
			Expect(nodes.upstream(digestOf(app, 2))).To(BeEmpty())
		})
	})

	Context("when no node matches", func() {
		It("is not Ready and says so, until one does", func(ctx SpecContext) {
			createNode(ctx, "plain")
			start()
			prefetch := createPrefetch(ctx, "app", onNodesWith("disk", "fast"))
			Eventually(statusOf(ctx, prefetch)).Should(And(notReady(v1alpha1.ReasonNoMatchingNodes), HaveField("DesiredNodes", BeEquivalentTo(0))))
			Eventually(eventsOn(ctx, prefetch)).Should(HaveExactElements("Warning NoMatchingNodes"))

			createNode(ctx, "later", labelled("disk", "fast"))
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(1))))
			Expect(setOf(ctx, "plain")(Default)).To(BeEmpty())
		})
	})

	Context("when nodes come, change and go", func() {
		It("stays Ready while a node that is added later has yet to receive its images, also after a restart", func(ctx SpecContext) {
			createNodes(ctx, 2)
			c := start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			nodes.change(func(a *agents) { a.slow["node-3"] = true })
			createNode(ctx, "node-3")
			joining := And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(3)), HaveField("ReadyNodes", BeEquivalentTo(2)),
				HaveField("JoiningNodes", BeEquivalentTo(1)),
				HaveField("Conditions", ContainElement(HaveField("Message", ContainSubstring("1 joining (node-3)")))))
			Eventually(statusOf(ctx, prefetch)).Should(joining)
			Eventually(setOf(ctx, "node-3")).Should(HaveKey(app))
			c.stop()
			start()
			createNode(ctx, "node-4")
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(4)), HaveField("ReadyNodes", BeEquivalentTo(3)),
				HaveField("JoiningNodes", BeEquivalentTo(1))))
			nodes.change(func(a *agents) { a.slow["node-3"] = false })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("ReadyNodes", BeEquivalentTo(4)), HaveField("JoiningNodes", BeEquivalentTo(0))))
		})

		It("serves a node that is added later from the mirror", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			createNode(ctx, "node-3")
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("ReadyNodes", BeEquivalentTo(3))))
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveLen(1))
		})

		It("follows the labels of nodes", func(ctx SpecContext) {
			one := createNode(ctx, "one", labelled("disk", "fast"))
			two := createNode(ctx, "two")
			start()
			prefetch := createPrefetch(ctx, "app", onNodesWith("disk", "fast"))
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(1))))
			update(ctx, two, func(node *corev1.Node) { node.Labels["disk"] = "fast" })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(2))))
			update(ctx, one, func(node *corev1.Node) { delete(node.Labels, "disk") })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("DesiredNodes", BeEquivalentTo(1))))
			Eventually(setOf(ctx, "one")).Should(BeEmpty())
		})

		It("does not trust the NodeImageSet of an earlier node of the same name", func(ctx SpecContext) {
			old := createNode(ctx, "node-1")
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			var set v1alpha1.NodeImageSet
			Expect(api.Get(ctx, keyOf("node-1"), &set)).To(Succeed())
			nodes.change(func(a *agents) { a.silent["node-1"] = true; delete(a.stored, "node-1") })
			Expect(api.Delete(ctx, old)).To(Succeed())
			createNode(ctx, "node-1")
			Eventually(statusOf(ctx, prefetch)).Should(notReady(v1alpha1.ReasonWaitingForSeeds))

			nodes.change(func(a *agents) { a.silent = map[string]bool{} })
			Expect(api.Delete(ctx, &set)).To(Succeed()) // as the garbage collector does
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveLen(2))
		})
	})

	Context("when a prefetch changes or is deleted", func() {
		It("drops the images that only the deleted one wanted", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			both := createPrefetch(ctx, "both", ofImages(app, sidecar))
			one := createPrefetch(ctx, "one")
			Eventually(statusOf(ctx, both)).Should(beReady())
			Eventually(statusOf(ctx, one)).Should(beReady())
			Expect(api.Delete(ctx, both)).To(Succeed())
			for _, node := range []string{"node-1", "node-2"} {
				Eventually(setOf(ctx, node)).Should(HaveLen(1))
				Expect(setOf(ctx, node)(Default)).To(HaveKey(app))
			}
			Expect(api.Delete(ctx, one)).To(Succeed())
			Eventually(setOf(ctx, "node-1")).Should(BeEmpty())
			Eventually(setOf(ctx, "node-2")).Should(BeEmpty())
			Expect(api.Get(ctx, keyOf("node-1"), &v1alpha1.NodeImageSet{})).To(Succeed(), "the object stays for its agent's watch")
		})

		It("is Ready for the present generation only", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			nodes.change(func(a *agents) { a.slow["node-1"], a.slow["node-2"] = true, true })
			update(ctx, prefetch, func(p *v1alpha1.ImagePrefetch) { p.Spec.Images = append(p.Spec.Images, sidecar) })
			Eventually(statusOf(ctx, prefetch)).Should(notReady(v1alpha1.ReasonWaitingForSeeds))
			nodes.change(func(a *agents) { a.slow = map[string]bool{} })
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
		})
	})

	Context("when a pull fails", func() {
		It("shows the reason at once, even while it is retried", func(ctx SpecContext) {
			createNodes(ctx, 3)
			nodes.change(func(a *agents) {
				a.faults[""] = fault{v1alpha1.ImagePending, v1alpha1.ReasonRegistryUnavailable, "the registry answered 503"}
			})
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(And(
				notReady(v1alpha1.ReasonWaitingForSeeds),
				degraded(v1alpha1.ReasonNodeFailures),
				messageOf(v1alpha1.ConditionDegraded, Equal("1 node is trying again (RegistryUnavailable)")),
				HaveField("FailedNodes", BeEquivalentTo(0)),
				HaveField("Failures", ConsistOf(And(
					HaveField("Image", app), HaveField("Reason", v1alpha1.ReasonRegistryUnavailable), HaveField("Message", "the registry answered 503"))))))

			nodes.change(func(a *agents) { a.faults = map[string]fault{} })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("Failures", BeEmpty()),
				haveCondition(v1alpha1.ConditionDegraded, metav1.ConditionFalse, v1alpha1.ReasonAsExpected)))
			Eventually(eventsOn(ctx, prefetch)).Should(ContainElements("Warning NodeFailures", "Normal AsExpected"))
		})

		It("says so when the registry does not know the image", func(ctx SpecContext) {
			createNodes(ctx, 4)
			nodes.change(func(a *agents) {
				a.faults[""] = fault{v1alpha1.ImageFailed, v1alpha1.ReasonImageNotFound, "no such image"}
			})
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(And(
				notReady(v1alpha1.ReasonNodesFailed), degraded(v1alpha1.ReasonNodeFailures),
				messageOf(v1alpha1.ConditionReady, ContainSubstring("ImageNotFound")),
				HaveField("FailedNodes", BeEquivalentTo(4)), // the others are not sent to ask as well
				HaveField("Failures", ContainElement(HaveField("Reason", v1alpha1.ReasonImageNotFound)))))
			Expect(nodes.mostSeeds(app)).To(Equal(1))
		})

		It("replaces a seed that fails, and never has two", func(ctx SpecContext) {
			createNodes(ctx, 3)
			nodes.change(func(a *agents) {
				a.faults["node-1"] = fault{v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable, "connection refused"}
			})
			c := start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveExactElements("node-2"))
			Expect(nodes.mostSeeds(app)).To(Equal(1))
			Expect(metric(c, "sluice_seeds_replaced_total")).To(Equal(1.0))
		})

		It("is Ready in spite of as many failures as are allowed", func(ctx SpecContext) {
			createNodes(ctx, 3)
			nodes.change(func(a *agents) { a.silent["node-3"] = true })
			time := &skewedClock{}
			start(func(s *settings) { s.clock = time })
			prefetch := createPrefetch(ctx, "app", func(p *v1alpha1.ImagePrefetch) {
				p.Spec.FailureTolerance = ptr.To(intstr.FromString("34%"))
			})
			Eventually(statusOf(ctx, prefetch)).Should(HaveField("ReadyNodes", BeEquivalentTo(2)))
			passAfter(ctx, time, agentTimeout)
			Eventually(statusOf(ctx, prefetch)).Should(And(
				haveCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonFailuresTolerated),
				degraded(v1alpha1.ReasonNodeFailures),
				HaveField("Failures", ConsistOf(And(
					HaveField("Node", "node-3"), HaveField("Reason", v1alpha1.ReasonAgentNotRunning),
					HaveField("Message", ContainSubstring("check that its Pod runs")))))))
		})
	})

	Context("when an agent cannot work", func() {
		It("chooses another seed for one whose agent does not answer", func(ctx SpecContext) {
			createNodes(ctx, 1)
			nodes.change(func(a *agents) { a.silent["node-1"] = true })
			time := &skewedClock{}
			start(func(s *settings) { s.clock = time })
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(notReady(v1alpha1.ReasonWaitingForSeeds))
			createNode(ctx, "node-2") // the pass that counts it has observed the silence of node-1
			Eventually(statusOf(ctx, prefetch)).Should(HaveField("DesiredNodes", BeEquivalentTo(2)))
			passAfter(ctx, time, agentTimeout)
			Eventually(statusOf(ctx, prefetch)).Should(And(notReady(v1alpha1.ReasonNodesFailed),
				HaveField("ReadyNodes", BeEquivalentTo(1)), HaveField("FailedNodes", BeEquivalentTo(1))))
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveExactElements("node-2"))
		})

		It("counts a node with an unsupported runtime as uncovered, and does not wait for it", func(ctx SpecContext) {
			createNodes(ctx, 2)
			nodes.change(func(a *agents) { a.idle["node-1"] = v1alpha1.ReasonUnsupportedRuntime })
			start()
			prefetch := createPrefetch(ctx, "app")
			Eventually(statusOf(ctx, prefetch)).Should(And(
				haveCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonAllNodesHoldImages),
				HaveField("ReadyNodes", BeEquivalentTo(1)),
				HaveField("DesiredNodes", BeEquivalentTo(1)), HaveField("UncoveredNodes", BeEquivalentTo(1)),
				HaveField("Conditions", ContainElement(HaveField("Message", ContainSubstring("no Sluice agent serves them (node-1)"))))))
		})

		It("counts a node whose runtime does not answer as failed, and as any other once it does", func(ctx SpecContext) {
			createNodes(ctx, 2)
			nodes.change(func(a *agents) { a.idle["node-1"] = v1alpha1.ReasonRuntimeUnavailable })
			start()
			prefetch := createPrefetch(ctx, "app", func(p *v1alpha1.ImagePrefetch) { p.Spec.FailureTolerance = ptr.To(intstr.FromInt32(1)) })
			Eventually(statusOf(ctx, prefetch)).Should(And(
				haveCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonFailuresTolerated),
				HaveField("ReadyNodes", BeEquivalentTo(1)), HaveField("FailedNodes", BeEquivalentTo(1)),
				HaveField("Failures", ConsistOf(And(HaveField("Node", "node-1"), HaveField("Reason", v1alpha1.ReasonRuntimeUnavailable))))))
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveExactElements("node-2"))

			nodes.change(func(a *agents) { clear(a.idle) })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), HaveField("ReadyNodes", BeEquivalentTo(2)), HaveField("Failures", BeEmpty())))
			Expect(nodes.upstream(digestOf(app, 1))).To(HaveExactElements("node-2"))
		})
	})

	Context("when fewer nodes match than replicas are asked for", func() {
		It("uses the nodes that match, and says so", func(ctx SpecContext) {
			createNodes(ctx, 2)
			start()
			prefetch := createPrefetch(ctx, "app", func(p *v1alpha1.ImagePrefetch) { p.Spec.Replicas = ptr.To[int32](5) })
			Eventually(statusOf(ctx, prefetch)).Should(And(beReady(), degraded(v1alpha1.ReasonTooFewNodes),
				messageOf(v1alpha1.ConditionDegraded, ContainSubstring("3 nodes more than match"))))
		})
	})

	Context("when an invalid image gets past the schema", func() {
		It("names it, and goes on with the images of others", func(ctx SpecContext) {
			createNodes(ctx, 1)
			start()
			wrong := createPrefetch(ctx, "wrong", ofImages(app, v1alpha1.ImageReference("ghcr.io/"+strings.Repeat("a", 256))))
			right := createPrefetch(ctx, "right", ofImages(sidecar))
			Eventually(statusOf(ctx, wrong)).Should(And(notReady(v1alpha1.ReasonInvalidSpec),
				messageOf(v1alpha1.ConditionReady, And(ContainSubstring("must not be more than 255 characters"), ContainSubstring("write it as in a Pod")))))
			Eventually(statusOf(ctx, right)).Should(beReady())
			Expect(setOf(ctx, "node-1")(Default)).To(HaveLen(1))
		})
	})

	Context("when the spec names pull secrets", func() {
		withSecret := func(p *v1alpha1.ImagePrefetch) {
			p.Spec.ImagePullSecrets = []v1alpha1.SecretReference{{Name: "registry"}}
		}

		It("says that they are not served if agents cannot get their credentials, and pulls nothing", func(ctx SpecContext) {
			createNodes(ctx, 1)
			start()
			prefetch := createPrefetch(ctx, "app", withSecret)
			Eventually(statusOf(ctx, prefetch)).Should(And(notReady(v1alpha1.ReasonUnsupported),
				messageOf(v1alpha1.ConditionReady, ContainSubstring("spec.imagePullSecrets"))))
			Expect(setOf(ctx, "node-1")(Default)).To(BeEmpty())
			update(ctx, prefetch, func(p *v1alpha1.ImagePrefetch) { p.Spec.ImagePullSecrets = nil })
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
		})

		It("names them in the NodeImageSet of the seed until it has the image", func(ctx SpecContext) {
			createNodes(ctx, 1)
			nodes.change(func(a *agents) { a.silent["node-1"] = true })
			start(func(s *settings) { s.secrets = true })
			prefetch := createPrefetch(ctx, "app", withSecret)
			secretsOn := func(g Gomega) []v1alpha1.PullSecretSource {
				var set v1alpha1.NodeImageSet
				g.Expect(api.Get(ctx, keyOf("node-1"), &set)).To(Succeed())
				g.Expect(set.Spec.ImageSet).To(HaveLen(1))
				return set.Spec.ImageSet[0].ImagePullSecrets
			}
			Eventually(secretsOn).Should(ConsistOf(v1alpha1.PullSecretSource{Namespace: "default", Name: "registry"}))

			By("taking them off the prefetch: those of the service account count")
			update(ctx, prefetch, func(p *v1alpha1.ImagePrefetch) { p.Spec.ImagePullSecrets = nil })
			Eventually(secretsOn).Should(ConsistOf(v1alpha1.PullSecretSource{
				Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "default", Name: "default",
			}))

			nodes.change(func(a *agents) { a.silent["node-1"] = false })
			Eventually(statusOf(ctx, prefetch)).Should(beReady())
			Eventually(secretsOn).Should(BeEmpty())
		})
	})
})

// agentTimeout is longer than each timeout of the plan.
const agentTimeout = 5 * time.Minute

// passAfter moves the clock forward and makes the controller start a pass.
func passAfter(ctx context.Context, clock *skewedClock, by time.Duration) {
	GinkgoHelper()
	clock.forward(by)
	createNode(ctx, "alarm-clock", labelled("kubernetes.io/os", "windows"), func(node *corev1.Node) {
		node.Status.NodeInfo.OperatingSystem = "windows"
	})
}

func versionOf(ctx context.Context, prefetch *v1alpha1.ImagePrefetch) string {
	GinkgoHelper()
	var now v1alpha1.ImagePrefetch
	Expect(api.Get(ctx, client.ObjectKeyFromObject(prefetch), &now)).To(Succeed())
	return now.ResourceVersion
}

// metric reads a counter, or the number of observations of a histogram.
func metric(c *controller, name string, label ...string) float64 {
	GinkgoHelper()
	families, err := c.registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if len(label) == 2 && (len(m.GetLabel()) != 1 || m.GetLabel()[0].GetName() != label[0] || m.GetLabel()[0].GetValue() != label[1]) {
				continue
			}
			return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return 0
}
