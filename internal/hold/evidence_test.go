// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// at is an image by the digest that the tag means in these tests.
func at(repository, tag string) string { return repository + "@" + digestOf(tag) }

func TestCause(t *testing.T) {
	const repository = "ghcr.io/org/app"
	byDigest := at(repository, imageB)
	gone := func(n *Node) { n.Ready = false }
	cordoned := func(n *Node) { n.Unschedulable = true }
	uncovered := func(n *Node) { n.Uncovered = true }
	down := func(n *Node) { n.Down = true }
	young := func(n *Node) { n.CreatedAt = now.Add(-time.Minute) }
	tainted := func(n *Node) { n.Taints = []corev1.Taint{{Key: "team", Effect: corev1.TaintEffectNoSchedule}} }
	joined := func(image string, since time.Duration) func(*Node) {
		return knows(Image{Name: image, JoinedAt: now.Add(-since)})
	}
	on := func(selector string) edit {
		return func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"pool": selector} }
	}
	strict := annotate(v1alpha1.OnTimeoutAnnotation, "Hold")
	many := func(complete, failures int) []Node {
		var nodes []Node
		for i := range complete {
			nodes = append(nodes, node(fmt.Sprintf("ok-%d", i), has(imageB)))
		}
		for i := range failures {
			nodes = append(nodes, node(fmt.Sprintf("bad-%d", i), failed(imageB)))
		}
		return nodes
	}
	refreshed := func(p *v1alpha1.ImagePrefetch) *v1alpha1.ImagePrefetch {
		p.Annotations = map[string]string{v1alpha1.RefreshAnnotation: "2"}
		return p
	}
	refreshedBefore := func(p *v1alpha1.ImagePrefetch) *v1alpha1.ImagePrefetch {
		p.Status.Images[0].Refresh = "1"
		return p
	}
	allowing := func(p *v1alpha1.ImagePrefetch, n int) *v1alpha1.ImagePrefetch {
		p.Spec.FailureTolerance = ptr.To(intstr.FromInt(n))
		return p
	}
	denied := func(p *v1alpha1.ImagePrefetch) *v1alpha1.ImagePrefetch {
		p.Status.Conditions[0].Reason = v1alpha1.ReasonPolicyDenied
		return p
	}

	reporting := func(p *v1alpha1.ImagePrefetch, node, image, reason string) *v1alpha1.ImagePrefetch {
		p.Status.Failures = []v1alpha1.NodeFailure{{Node: node, Image: image, Reason: reason}}
		return p
	}
	asked := func(image string) func(*Node) { return knows(Image{Name: image, Digest: digestOf(image)}) }
	selecting := func(p *v1alpha1.ImagePrefetch, pool string) *v1alpha1.ImagePrefetch {
		p.Spec.NodeSelector = map[string]string{"pool": pool}
		return p
	}
	replicated := func(p *v1alpha1.ImagePrefetch) *v1alpha1.ImagePrefetch {
		p.Spec.Replicas = ptr.To[int32](2)
		return p
	}

	for _, tt := range []struct {
		reason   string
		runs     string
		edits    []edit
		prefetch *v1alpha1.ImagePrefetch
		others   []*v1alpha1.ImagePrefetch
		nodes    []Node
		want     Cause
	}{
		// Names.
		{reason: "a tag covers its digest", runs: byDigest, prefetch: prefetch(imageB), nodes: []Node{node("a")}, want: CauseReady},
		{
			reason:   "a tag covers itself with its digest",
			runs:     imageB + "@" + digestOf(imageB),
			prefetch: prefetch(imageB),
			nodes:    []Node{node("a")},
			want:     CauseReady,
		},
		{reason: "a tag covers no other digest", runs: at(repository, imageC), prefetch: prefetch(imageB), nodes: []Node{node("a", has(imageB))}},
		{reason: "a tag covers no other repository", runs: at("ghcr.io/org/other", imageB), prefetch: prefetch(imageB), nodes: []Node{node("a", has(imageB))}},
		{
			reason:   "a tag covers no repository that begins alike",
			runs:     at("ghcr.io/org/ap", imageB),
			prefetch: prefetch(imageB),
			nodes:    []Node{node("a", has(imageB))},
		},
		{reason: "a digest covers no tag", runs: imageB, prefetch: prefetch(byDigest), nodes: []Node{node("a", has(byDigest))}},
		{reason: "a digest is evidence whoever brought it", runs: byDigest, nodes: []Node{node("a", has(byDigest))}, want: CauseEvidence},
		{reason: "a tag that came is evidence for its digest", runs: byDigest, nodes: []Node{node("a", has(imageB))}, want: CauseEvidence},
		{
			reason: "another tag of the repository that failed is not the image",
			runs:   byDigest,
			nodes:  []Node{node("a", has(imageB)), node("b", failed(imageC))},
		},
		{
			reason: "a tag that failed is, where it means the digest",
			runs:   byDigest,
			nodes:  []Node{node("a", has(imageB)), node("b", failed(imageB))},
			want:   CauseEvidence,
		},
		{
			reason: "a tag that is to mean another digest, where the old one is still there",
			runs:   byDigest,
			nodes:  []Node{node("a", knows(Image{Name: imageB, Digest: digestOf(imageC), Present: digestOf(imageB)}))},
			want:   CauseEvidence,
		},
		{reason: "a tag that nobody in the namespace resolved is no evidence", runs: imageB, nodes: []Node{node("a", has(imageB))}},
		{
			reason: "a tag that another ImagePrefetch of the namespace resolved is",
			runs:   imageB,
			others: []*v1alpha1.ImagePrefetch{pulling(imageB)},
			nodes:  []Node{node("a", has(imageB))},
			want:   CauseEvidence,
		},

		// What the ImagePrefetch says, and what it has yet to say.
		{
			reason:   "an image that is missing elsewhere holds up nobody else",
			runs:     imageB,
			prefetch: failing(imageB, imageC),
			nodes:    []Node{node("a", has(imageB), failed(imageC))},
			want:     CauseEvidence,
		},
		{reason: "Ready for what the tag meant before the refresh", runs: imageB, prefetch: refreshed(prefetch(imageB)), nodes: []Node{node("a", has(imageB))}},
		{
			reason:   "what another one resolved the tag to, while its own asks again",
			runs:     imageB,
			prefetch: refreshed(pulling(imageB)),
			others:   []*v1alpha1.ImagePrefetch{pulling(imageB)},
			nodes:    []Node{node("a", has(imageB))},
		},
		{
			reason:   "a refresh that was taken off since",
			runs:     imageB,
			prefetch: refreshedBefore(prefetch(imageB)),
			nodes:    []Node{node("a", has(imageB))},
			want:     CauseReady,
		},
		{reason: "an ImagePrefetch that a policy denies", runs: imageB, prefetch: denied(pulling(imageB)), nodes: []Node{node("a")}, want: CauseDenied},
		{
			reason:   "one mistaken policy releases no strict hold",
			runs:     imageB,
			edits:    []edit{strict},
			prefetch: denied(pulling(imageB)),
			nodes:    []Node{node("a")},
		},

		// Nodes.
		{reason: "a node lacks it", runs: imageB, prefetch: pulling(imageB), nodes: []Node{node("a", has(imageB)), node("b")}},
		{
			reason:   "a node that its Pods do not select",
			runs:     imageB,
			edits:    []edit{on("web")},
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", func(n *Node) { n.Labels = nil })},
			want:     CauseEvidence,
		},
		{
			reason:   "a node that is tainted for others",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", tainted)},
			want:     CauseEvidence,
		},
		{
			reason:   "a node that is not Ready",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", gone)},
			want:     CauseEvidence,
		},
		{
			reason:   "a node that is cordoned",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", cordoned)},
			want:     CauseEvidence,
		},
		{
			reason:   "a node without an agent",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", uncovered)},
			want:     CauseEvidence,
		},
		{
			reason:   "a node that registered after the hold began",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", young)},
			want:     CauseEvidence,
		},
		{
			reason:   "a node that was uncordoned after the hold began",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", joined(imageB, time.Minute))},
			want:     CauseEvidence,
		},
		{
			reason:   "a node that joined before the hold began",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", joined(imageB, time.Hour))},
		},
		{
			reason:   "a node that the ImagePrefetch does not select: another may bring it there",
			runs:     imageB,
			prefetch: selecting(pulling(imageB), "db"),
			nodes:    []Node{node("a", has(imageB)), node("b")},
		},
		{
			reason:   "a node that waits for its turn among the replicas",
			runs:     imageB,
			prefetch: replicated(pulling(imageB)),
			nodes:    []Node{node("a", has(imageB)), node("b")},
		},
		{reason: "all are excused, which is no evidence", runs: imageB, prefetch: pulling(imageB), nodes: []Node{node("a", uncovered), node("b", young)}},
		{reason: "none has it, and the only one failed", runs: imageB, prefetch: pulling(imageB), nodes: []Node{node("a", failed(imageB))}},

		// Failures.
		{reason: "one failed node", runs: imageB, prefetch: pulling(imageB), nodes: many(2, 1), want: CauseEvidence},
		{
			reason:   "one whose agent is down",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", down)},
			want:     CauseEvidence,
		},
		{
			reason:   "one that is asked for nothing, since it has no room, as the ImagePrefetch says",
			runs:     imageB,
			prefetch: reporting(pulling(imageB, imageC), "b", imageC, v1alpha1.ReasonTooManyImages),
			nodes:    []Node{node("a", has(imageB)), node("b")},
			want:     CauseEvidence,
		},
		{
			reason:   "one whose platform the image does not have, as the ImagePrefetch says",
			runs:     byDigest,
			prefetch: reporting(pulling(imageB), "b", imageB, v1alpha1.ReasonPlatformNotProvided),
			nodes:    []Node{node("a", has(imageB)), node("b")},
			want:     CauseEvidence,
		},
		{
			reason:   "one that the mirror does not serve, and that is not asked again, as the ImagePrefetch says",
			runs:     imageB,
			prefetch: reporting(pulling(imageB), "b", imageB, v1alpha1.ReasonNotOnMirror),
			nodes:    []Node{node("a", has(imageB)), node("b", asked(imageB))},
			want:     CauseEvidence,
		},
		{
			reason:   "one on which another image has failed",
			runs:     imageB,
			prefetch: reporting(pulling(imageB, imageC), "b", imageC, v1alpha1.ReasonImageNotFound),
			nodes:    []Node{node("a", has(imageB)), node("b", asked(imageB))},
		},
		{
			reason:   "one that the ImagePrefetch says has failed, of two that have",
			runs:     imageB,
			prefetch: reporting(pulling(imageB), "b", imageB, v1alpha1.ReasonNotOnMirror),
			nodes:    []Node{node("a", has(imageB)), node("b", asked(imageB)), node("c", failed(imageB))},
		},
		{reason: "two failed nodes of a few", runs: imageB, prefetch: pulling(imageB), nodes: many(10, 2)},
		{reason: "a twentieth of many", runs: imageB, prefetch: pulling(imageB), nodes: many(38, 2), want: CauseEvidence},
		{reason: "more than a twentieth of many", runs: imageB, prefetch: pulling(imageB), nodes: many(37, 3)},
		{reason: "a strict hold allows no failure", runs: imageB, edits: []edit{strict}, prefetch: pulling(imageB), nodes: many(2, 1)},
		{
			reason:   "but those that its ImagePrefetch allows",
			runs:     imageB,
			edits:    []edit{strict},
			prefetch: allowing(pulling(imageB), 1),
			nodes:    many(2, 1),
			want:     CauseEvidence,
		},

		// Nothing to wait for.
		{reason: "no node matches", runs: imageB, edits: []edit{on("gpu")}, prefetch: pulling(imageB), nodes: []Node{node("a")}, want: CauseNoMatchingNodes},
		{
			reason:   "no node matches a strict hold",
			runs:     imageB,
			edits:    []edit{on("gpu"), strict},
			prefetch: pulling(imageB),
			nodes:    []Node{node("a")},
			want:     CauseNoMatchingNodes,
		},
		{
			reason:   "all matching nodes bear a taint that lasts",
			runs:     imageB,
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", tainted)},
			want:     CauseNoMatchingNodes,
		},
		{reason: "an outage of all nodes", runs: imageB, prefetch: pulling(imageB), nodes: []Node{node("a", has(imageB), gone), node("b", cordoned)}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			d := deployment(append([]edit{runs(tt.runs), held(5 * time.Minute)}, tt.edits...)...)
			cluster := Cluster{Nodes: tt.nodes, Prefetches: tt.others}
			if tt.prefetch != nil {
				cluster.Prefetches = append(cluster.Prefetches, tt.prefetch)
			}
			step := Next(d, tt.prefetch, cluster, now)
			if step.End != End(tt.want) {
				t.Errorf("ends %q, want %q: %+v", step.End, tt.want, step.Wait)
			}
		})
	}
}

func TestWhetherANodeStillLacksImages(t *testing.T) {
	lacks := node("b")
	d := deployment(runs(imageB), held(5*time.Minute), func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"pool": "web"} })
	p := pulling(imageB)
	step := Next(d, p, Cluster{Nodes: []Node{node("a", has(imageB)), lacks}, Prefetches: []*v1alpha1.ImagePrefetch{p}}, now)
	if step.Lacking != "b" {
		t.Fatalf("waits for %q, want b", step.Lacking)
	}
	for _, tt := range []struct {
		reason string
		now    Node
		want   bool
	}{
		{"as it was", lacks, true},
		{"it has another image", node("b", has(imageC)), true},
		{"it is asked for the image", node("b", knows(Image{Name: imageB, Digest: digestOf(imageB)})), true},
		{"it has the image", node("b", has(imageB)), false},
		{"it has failed", node("b", failed(imageB)), false},
		{"its agent is silent", node("b", func(n *Node) { n.Down = true }), false},
		{"it takes no Pods", node("b", func(n *Node) { n.Unschedulable = true }), false},
		{"the Pods do not match it any more", node("b", func(n *Node) { n.Labels = nil }), false},
		{"no agent is meant to run there any more", node("b", func(n *Node) { n.Uncovered = true }), false},
		{"it is another node of that name, which came later", node("b", func(n *Node) { n.CreatedAt = now }), false},
	} {
		if got := step.StillLacks(&tt.now); got != tt.want {
			t.Errorf("%s: still lacks %t, want %t", tt.reason, got, tt.want)
		}
	}
}

// Nodes that come later are no reason to hold what is written now.
func TestOnlyAHoldExcusesNodesThatCameLater(t *testing.T) {
	young := node("b", func(n *Node) { n.CreatedAt = now })
	p := pulling(imageB)
	cluster := Cluster{Nodes: []Node{node("a", has(imageB)), young}, Prefetches: []*v1alpha1.ImagePrefetch{p}}
	decision := Decide(Write{Old: deployment(), New: deployment(runs(imageB)), Prefetch: p, Cluster: cluster, Now: now})
	if decision.Outcome != OutcomeHeld {
		t.Errorf("outcome %s, want %s", decision.Outcome, OutcomeHeld)
	}
}
