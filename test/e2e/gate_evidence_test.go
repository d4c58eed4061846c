// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

const (
	// agentsLabel is on the nodes that the agents' DaemonSet selects.
	agentsLabel = "sluice.test/agents"
	// agentTimeout is how long an agent may be silent.
	agentTimeout = 8 * time.Second
)

// missing is an image that the registry does not have: an ImagePrefetch that lists it is never
// Ready, so that a rollout goes by its own images alone.
const missing = stack.Registry + "/evidence/missing:v1"

var _ = Describe("A rollout on real nodes", Ordered, ContinueOnFailure, func() {
	onStackOfItsOwn(stack.Options{
		Nodes:           []cluster.NodeOptions{nodeWithAgent(nil), nodeWithAgent(nil), nodeWithAgent(nil)},
		Webhooks:        true,
		ControllerFlags: []string{"--agent-daemonset=" + stack.Namespace + "/sluice-agent", "--agent-timeout=" + agentTimeout.String()},
	})
	BeforeAll(func(ctx SpecContext) { placeAgents(ctx) })

	It("passes by the digest that the tag was resolved to, and its Pods start without a pull", func(ctx SpecContext) {
		const repository = "evidence/digest"
		v1, _ := push(ctx, repository+":v1", "digest v1")
		v2, digest := push(ctx, repository+":v2", "digest v2")
		p := prefetch(ctx, "digest", imagesOf(v1, v2))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1)
		asked := len(s.Upstream.Requests().Where(upstream.In(repository)))

		byDigest := stack.Registry + "/" + repository + "@"
		for _, name := range []string{v2 + "@" + digest, byDigest + digest} {
			Expect(setImage(ctx, d, name)).NotTo(ContainSubstring("Warning: "))
			eventuallyRuns(ctx, d, name)
			expectStartedWithoutPull(ctx, d)
		}
		Expect(s.Upstream.Requests().Where(upstream.In(repository))).To(HaveLen(asked))

		By("naming another digest")
		_, other := push(ctx, repository+":v3", "digest v3")
		both := And(ContainSubstring("does not list "+byDigest+other), ContainSubstring("its tag means "), ContainSubstring(digest))
		Expect(setImage(ctx, d, byDigest+other)).To(And(ContainSubstring("Warning: the rollout is held"), both))
		Eventually(func() []string { return events(ctx, d) }).Should(ContainElement(And(HavePrefix(hold.ReasonImagesNotListed+": Held: "), both)))
		expectHeld(ctx, d)
	})

	It("waits for its own images, and not for another one of its ImagePrefetch that is missing", func(ctx SpecContext) {
		v1, v1Digest := push(ctx, "evidence/own:v1", "own v1")
		v2 := pushUnfinished(ctx, "evidence/own:v2", "own v2")
		p := prefetch(ctx, "own", imagesOf(v1))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1)
		asked := len(s.Upstream.Requests().Where(upstream.Of(v1Digest)))
		Expect(asked).NotTo(BeZero())
		bring(ctx, p, v2.name, missing)
		other := gated(ctx, p, missing, func(d *appsv1.Deployment) {
			d.Name = "other"
			d.Spec.Selector.MatchLabels = map[string]string{"app": d.Name}
			d.Spec.Template.Labels = d.Spec.Selector.MatchLabels
		})

		Expect(setImage(ctx, d, v2.name)).To(ContainSubstring("3 of 3 nodes that its Pods can run on still lack " + v2.name))
		expectHeld(ctx, d)
		v2.finish()
		eventuallyRuns(ctx, d, v2.name)
		expectStartedWithoutPull(ctx, d)
		Expect(events(ctx, d)).To(ContainElement(And(
			HavePrefix(hold.ReasonReleased+": "), HaveSuffix("3 of 3 nodes that its Pods can run on have all images"))))
		Eventually(ready(ctx, p)).Should(HaveField("Reason", v1alpha1.ReasonNodesFailed))
		Expect(s.Upstream.Requests().Where(upstream.Of(v1Digest))).To(HaveLen(asked), "what was there is not asked for again")

		By("holding the one whose image is missing")
		Eventually(func() []string { return events(ctx, other) }).Should(ContainElement(And(
			HavePrefix(hold.ReasonPrefetchFailing+": Held: "), ContainSubstring(missing), ContainSubstring(v1alpha1.ReasonImageNotFound))))
		expectHeld(ctx, other)
	})

	It("waits after a refresh for what the tag means now, and its Pods run that", func(ctx SpecContext) {
		v1, _ := push(ctx, "evidence/refresh:v1", "refresh v1")
		name, before := push(ctx, "evidence/refresh:stable", "refresh stable")
		p := prefetch(ctx, "refresh", imagesOf(v1, name))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1)

		moved := pushUnfinished(ctx, "evidence/refresh:stable", "refresh stable, moved")
		kubectl(ctx, "", "annotate", "imageprefetch/refresh", v1alpha1.RefreshAnnotation+"=2")
		Expect(setImage(ctx, d, name)).To(ContainSubstring("Warning: the rollout is held"))
		expectHeld(ctx, d)
		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(before), "%s has the old one", node.Name)
		}

		moved.finish()
		eventuallyRuns(ctx, d, name)
		expectStartedWithoutPull(ctx, d)
		for _, pod := range pods(ctx, d) {
			Expect(pod.Status.ContainerStatuses).To(ConsistOf(HaveField("ImageID", HaveSuffix("@"+moved.digest))))
		}
	})

	It("is told where its ImagePrefetch does not bring the images, and its Pod pulls there", func(ctx SpecContext) {
		nodes := s.Cluster.Nodes()
		v1, _ := push(ctx, "evidence/elsewhere:v1", "elsewhere v1")
		v2, _ := push(ctx, "evidence/elsewhere:v2", "elsewhere v2")
		spec := imagesOf(v1, v2)
		spec.NodeSelector = on(nodes[0])
		p := prefetch(ctx, "elsewhere", spec)
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1, func(d *appsv1.Deployment) {
			d.Spec.Replicas = ptr.To(int32(1))
			d.Spec.Template.Spec.NodeSelector = on(nodes[2])
		})

		const says = `ImagePrefetch "elsewhere" does not select 1 of the 1 nodes that the Pods can run on`
		Expect(setImage(ctx, d, v2)).To(And(ContainSubstring("Warning: "+says), Not(ContainSubstring("held"))))
		eventuallyRuns(ctx, d, v2)
		Expect(events(ctx, &pods(ctx, d)[0])).To(ContainElement(HavePrefix("Pulling: ")))
		Eventually(func() []string { return events(ctx, d) }).Should(ContainElement(HavePrefix(hold.ReasonNodesNotSelected + ": " + says)))

		By("selecting its node as well")
		edit(ctx, p, func(spec *v1alpha1.ImagePrefetchSpec) { spec.NodeSelector = nil })
		eventuallyReady(ctx, p)
		Eventually(func() string { return setImage(ctx, d, v1, "--dry-run=server") }).ShouldNot(ContainSubstring("Warning: "))
	})

	Context("that a program writes back during its hold, with labels and annotations of its own", func() {
		// overwrite does that, and changes the template. The annotations are what it keeps.
		overwrite := func(ctx context.Context, d *appsv1.Deployment, annotations map[string]string) {
			GinkgoHelper()
			expectHeld(ctx, d)
			d.ResourceVersion = "" // whatever the Deployment controller writes meanwhile
			d.Labels, d.Annotations = map[string]string{"program": "x"}, annotations
			d.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PROGRAM", Value: "x"}}
			Expect(s.Client.Update(ctx, d)).To(Succeed())
		}

		It("goes on being held, and its Pods start without a pull when it is released", func(ctx SpecContext) {
			v1, _ := push(ctx, "evidence/overwritten:v1", "overwritten v1")
			v2 := pushUnfinished(ctx, "evidence/overwritten:v2", "overwritten v2")
			p := prefetch(ctx, "overwritten", imagesOf(v1))
			d := gatedOn(ctx, p, v1)
			bring(ctx, p, v2.name)
			setImage(ctx, d, v2.name)
			expectHeld(ctx, d)
			since := d.Annotations[v1alpha1.HeldAtAnnotation]
			overwrite(ctx, d, map[string]string{v1alpha1.PrefetchAnnotation: p.Name})
			expectHeld(ctx, d)
			Expect(d.Annotations).To(HaveKeyWithValue(v1alpha1.HeldAtAnnotation, since), "it is the same hold")

			v2.finish()
			eventuallyRuns(ctx, d, v2.name)
			expectStartedWithoutPull(ctx, d)
			Expect(d.Spec.Template.Spec.Containers[0].Env).To(ConsistOf(HaveField("Name", "PROGRAM")))
			Expect(d.Labels).To(Equal(map[string]string{"program": "x"}), "nothing of ours is left")
		})

		It("is not left paused where the program drops the gate", func(ctx SpecContext) {
			v1, _ := push(ctx, "evidence/dropped:v1", "dropped v1")
			v2 := pushUnfinished(ctx, "evidence/dropped:v2", "dropped v2")
			p := prefetch(ctx, "dropped", imagesOf(v1))
			d := gatedOn(ctx, p, v1)
			bring(ctx, p, v2.name)
			setImage(ctx, d, v2.name)
			overwrite(ctx, d, nil)
			Eventually(func() []string { return podsOf(ctx, d, v2.name) }).ShouldNot(BeEmpty())
			v2.finish()
			eventuallyRuns(ctx, d, v2.name)
			Expect(d.Spec.Paused).To(BeFalse())
		})
	})

	It("does not wait for a node that the agents' DaemonSet does not select", func(ctx SpecContext) {
		left := s.Cluster.Nodes()[2]
		kubectl(ctx, "", "label", "node", left.Name, agentsLabel+"-")
		s.Agent(left).Stop() // the DaemonSet controller does so
		DeferCleanup(func(ctx SpecContext) {
			kubectl(ctx, "", "label", "node", left.Name, agentsLabel+"=yes")
			_, err := s.StartAgent(ctx, left)
			Expect(err).NotTo(HaveOccurred())
		})
		v1, _ := push(ctx, "evidence/uncovered:v1", "uncovered v1")
		v2 := pushUnfinished(ctx, "evidence/uncovered:v2", "uncovered v2")
		p := prefetch(ctx, "uncovered", imagesOf(v1))
		eventuallyReady(ctx, p)
		Expect(p.Status).To(And(HaveField("DesiredNodes", BeEquivalentTo(2)), HaveField("UncoveredNodes", BeEquivalentTo(1))))
		d := gatedOn(ctx, p, v1, withoutEnd)

		bring(ctx, p, v2.name, missing)
		Expect(setImage(ctx, d, v2.name)).To(ContainSubstring("Warning: the rollout is held"))
		expectHeld(ctx, d)
		v2.finish()
		eventuallyRuns(ctx, d, v2.name)
		Expect(events(ctx, d)).To(ContainElement(And(HavePrefix(hold.ReasonReleased+": "),
			HaveSuffix("2 of 2 nodes that its Pods can run on have all images; 1 without a Sluice agent"))))
	})

	It("waits for a dead agent no longer than an agent may be silent, and no longer than one node may fail", func(ctx SpecContext) {
		dead := s.Cluster.Nodes()[2]
		v1, _ := push(ctx, "evidence/dead:v1", "dead v1")
		v2, digest := push(ctx, "evidence/dead:v2", "dead v2")
		p := prefetch(ctx, "dead", imagesOf(v1))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1)
		s.Agent(dead).Kill()
		DeferCleanup(func(ctx SpecContext) {
			_, err := s.StartAgent(ctx, dead)
			Expect(err).NotTo(HaveOccurred())
		})

		bring(ctx, p, v2)
		Expect(setImage(ctx, d, v2)).To(ContainSubstring("Warning: the rollout is held"))
		expectHeld(ctx, d)
		eventuallyRuns(ctx, d, v2)
		Expect(events(ctx, d)).To(ContainElement(And(HavePrefix(hold.ReasonReleased+": "),
			HaveSuffix("2 of 3 nodes that its Pods can run on have all images; 1 failed"))))
		for _, node := range s.Cluster.Nodes()[:2] {
			Expect(digestOn(ctx, node, v2)).To(Equal(digest), node.Name)
		}
		Eventually(ready(ctx, p)).Should(HaveField("Reason", v1alpha1.ReasonNodesFailed), "the ImagePrefetch itself tolerates none")
	})

	It("does not wait for an agent that dies in the middle of its pull", func(ctx SpecContext) {
		dead := s.Cluster.Nodes()[2]
		v1, _ := push(ctx, "evidence/dying:v1", "dying v1")
		v2 := pushUnfinished(ctx, "evidence/dying:v2", "dying v2")
		p := prefetch(ctx, "dying", imagesOf(v1))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1)
		bring(ctx, p, v2.name)
		Expect(setImage(ctx, d, v2.name)).To(ContainSubstring("Warning: the rollout is held"))
		Eventually(func(g Gomega) {
			var set v1alpha1.NodeImageSet
			g.Expect(s.Client.Get(ctx, client.ObjectKey{Name: dead.Name}, &set)).To(Succeed())
			g.Expect(set.Status.ObservedGeneration).To(Equal(set.Generation))
			g.Expect(set.Status.Images).To(ContainElement(And(HaveField("Name", v2.name), HaveField("State", v1alpha1.ImagePulling))))
		}).Should(Succeed())

		s.Agent(dead).Kill()
		DeferCleanup(func(ctx SpecContext) {
			_, err := s.StartAgent(ctx, dead)
			Expect(err).NotTo(HaveOccurred())
		})
		expectHeld(ctx, d)
		v2.finish()
		eventuallyRuns(ctx, d, v2.name)
		Expect(events(ctx, d)).To(ContainElement(And(HavePrefix(hold.ReasonReleased+": "),
			HaveSuffix("2 of 3 nodes that its Pods can run on have all images; 1 failed"))))
		Eventually(ready(ctx, p)).Should(And(HaveField("Reason", v1alpha1.ReasonNodesFailed),
			HaveField("Message", ContainSubstring(v1alpha1.ReasonAgentNotRunning))), "the ImagePrefetch itself tolerates none")
	})

	It("does not wait for a node that joins during its hold", func(ctx SpecContext) {
		v1, _ := push(ctx, "evidence/joined:v1", "joined v1")
		v2 := pushUnfinished(ctx, "evidence/joined:v2", "joined v2")
		p := prefetch(ctx, "joined", imagesOf(v1))
		eventuallyReady(ctx, p)
		d := gatedOn(ctx, p, v1, withoutEnd)
		bring(ctx, p, v2.name, missing)
		Expect(setImage(ctx, d, v2.name)).To(ContainSubstring("Warning: the rollout is held"))
		expectHeld(ctx, d)

		By("adding one, whose agent is not up")
		node := addNode(ctx, nodeWithAgent(nil))
		s.Agent(node).Stop()
		expectHeld(ctx, d)
		v2.finish()
		eventuallyRuns(ctx, d, v2.name)
		Expect(events(ctx, d)).To(ContainElement(And(HavePrefix(hold.ReasonReleased+": "),
			HaveSuffix("3 of 3 nodes that its Pods can run on have all images; 1 joined later"))))
	})

	It("does not wait where no node matches, so that its pending Pods bring one", func(ctx SpecContext) {
		pool := map[string]string{"pool": "gpu"}
		v1, _ := push(ctx, "evidence/pool:v1", "pool v1")
		v2, digest := push(ctx, "evidence/pool:v2", "pool v2")
		spec := imagesOf(v1, v2)
		spec.NodeSelector = pool
		p := prefetch(ctx, "pool", spec)
		d := gated(ctx, p, v1, withoutEnd, func(d *appsv1.Deployment) {
			d.Spec.Replicas = ptr.To(int32(1))
			d.Spec.Template.Spec.NodeSelector = pool
		})

		Expect(setImage(ctx, d, v2)).To(ContainSubstring("Warning: the rollout is not held: no node has the labels"))
		Eventually(func(g Gomega) {
			var waiting []string
			for _, pod := range pods(ctx, d) {
				if pod.Spec.Containers[0].Image == v2 {
					waiting = append(waiting, events(ctx, &pod)...)
				}
			}
			g.Expect(waiting).To(ContainElement(HavePrefix("FailedScheduling: ")), "what an autoscaler goes by")
		}).Should(Succeed())

		By("adding one, as an autoscaler does")
		node := addNode(ctx, nodeWithAgent(pool))
		eventuallyRuns(ctx, d, v2)
		Eventually(ready(ctx, p)).Should(HaveField("Status", metav1.ConditionTrue))
		Expect(digestOn(ctx, node, v2)).To(Equal(digest))
	})
})

// nodeWithAgent is a node that the agents' DaemonSet selects.
func nodeWithAgent(labels map[string]string) cluster.NodeOptions {
	all := map[string]string{agentsLabel: "yes"}
	for key, value := range labels {
		all[key] = value
	}
	return cluster.NodeOptions{Labels: all}
}

// placeAgents makes the DaemonSet whose placement says where agents are meant to run. The
// agents themselves are programs of the stack.
func placeAgents(ctx context.Context) {
	GinkgoHelper()
	name, _ := push(ctx, "evidence/agent:v1", "agent")
	labels := map[string]string{"app": "sluice-agent"}
	Expect(s.Client.Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: stack.Namespace, Name: "sluice-agent"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{agentsLabel: "yes"},
					Containers:   []corev1.Container{{Name: "main", Image: name}},
				},
			},
		},
	})).To(Succeed())
}
