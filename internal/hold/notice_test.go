// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestWhatEventsTellOfAWrite(t *testing.T) {
	running, holding := deployment(), deployment(runs(imageB), held(5*time.Minute))
	elsewhere := func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"pool": "gpu"} }
	denied := pulling(imageB)
	denied.Status.Conditions[0].Reason = v1alpha1.ReasonPolicyDenied
	for _, tt := range []struct {
		reason   string
		old, new *appsv1.Deployment
		prefetch *v1alpha1.ImagePrefetch
		nodes    []Node
		want     []Notice
	}{
		{reason: "a hold begins: the controller tells", old: running, new: with(running, runs(imageB)), prefetch: pulling(imageB)},
		{reason: "a hold goes on", old: holding, new: with(holding, environment("x")), prefetch: pulling(imageB)},
		{reason: "all nodes have the images", old: running, new: with(running, runs(imageB)), prefetch: pulling(imageB), nodes: []Node{node("a", has(imageB))}},
		{
			reason:   "one that failed was not waited for",
			old:      running,
			new:      with(running, runs(imageB)),
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", has(imageB)), node("b", failed(imageB))},
			want:     []Notice{{Reason: ReasonNotHeld, Note: "Not held: 1 of 2 nodes that its Pods can run on have all images; 1 failed"}},
		},
		{
			reason:   "no node matches",
			new:      deployment(runs(imageB), elsewhere),
			prefetch: pulling(imageB),
			want: []Notice{{Warning: true, Reason: ReasonNotHeld, Note: "Not held: no node has the labels, the affinity and the taints that its Pods ask for, " +
				"so that there is nothing to wait for; the Pods pull on the nodes that come"}},
		},
		{
			reason:   "a policy denies the ImagePrefetch",
			old:      running,
			new:      with(running, runs(imageB)),
			prefetch: denied,
			want: []Notice{{Warning: true, Reason: ReasonNotHeld,
				Note: `Not held: waiting cannot help: ImagePrefetch "app" is not Ready: PolicyDenied: `}},
		},
		{
			reason:   "a write ends a hold, because the images are there by now",
			old:      holding,
			new:      with(holding, environment("x")),
			prefetch: prefetch(imageB),
			want:     []Notice{{Reason: ReasonReleased, Note: `Released after 5m: ImagePrefetch "app" is Ready`}},
		},
		{
			reason:   "the images are set back",
			old:      holding,
			new:      with(holding, runs(imageA)),
			prefetch: pulling(imageB),
			want:     []Notice{{Reason: ReasonReleased, Note: "Released after 5m: its images were let through before"}},
		},
		{
			reason:   "the owner opts out",
			old:      holding,
			new:      with(holding, dropAnnotation(v1alpha1.PrefetchAnnotation)),
			prefetch: pulling(imageB),
			want:     []Notice{{Reason: ReasonReleased, Note: "Released after 5m: the Deployment is not gated, or skips the gate"}},
		},
		{
			reason:   "the owner pauses",
			old:      holding,
			new:      with(holding, applied(`{"paused":true}`)),
			prefetch: pulling(imageB),
			want:     []Notice{{Reason: ReasonReleased, Note: "Not held any more, and paused by its owner: resume it when it may roll out"}},
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			nodes := tt.nodes
			if nodes == nil {
				nodes = []Node{node("a")}
			}
			cluster := Cluster{Nodes: nodes, Prefetches: []*v1alpha1.ImagePrefetch{tt.prefetch}}
			decision := Decide(Write{Old: tt.old, New: tt.new, Prefetch: tt.prefetch, Cluster: cluster, Now: now})
			if !slices.Equal(decision.Notices, tt.want) {
				t.Errorf("%s: notices %+v, want %+v", decision.Outcome, decision.Notices, tt.want)
			}
		})
	}
}

func TestAReleaseSaysWhoWasNotWaitedFor(t *testing.T) {
	nodes := []Node{
		node("a", has(imageB)),
		node("b", func(n *Node) { n.Uncovered = true }),
		node("c", func(n *Node) { n.CreatedAt = now.Add(-time.Minute) }),
		node("d", knows(Image{Name: imageB, JoinedAt: now.Add(-time.Minute)})),
		node("e", failed(imageB)),
	}
	p := pulling(imageB)
	step := Next(deployment(runs(imageB), held(5*time.Minute)), p, Cluster{Nodes: nodes, Prefetches: []*v1alpha1.ImagePrefetch{p}}, now)
	const want = "1 of 2 nodes that its Pods can run on have all images; 1 failed; 2 joined later; 1 without a Sluice agent"
	if step.End != EndEvidence || len(step.Notices) != 1 || step.Notices[0].Note != "Released after 5m: "+want {
		t.Errorf("ends %q with %+v, want %q", step.End, step.Notices, want)
	}
}

func TestPlacementThatNobodyCovers(t *testing.T) {
	elsewhere := prefetch(imageB)
	elsewhere.Spec.NodeSelector = map[string]string{"pool": "gpu"}
	affine := prefetch(imageB)
	affine.Spec.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: "pool", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"web"}},
		}}},
	}}
	few := prefetch(imageB)
	few.Spec.Replicas = ptr.To[int32](1)
	for _, tt := range []struct {
		reason   string
		prefetch *v1alpha1.ImagePrefetch
		nodes    []Node
		warns    string
	}{
		{"another node selector", elsewhere, []Node{node("a"), node("b")}, "does not select 2 of the 2 nodes"},
		{"another affinity", affine, []Node{node("a")}, "does not select 1 of the 1 nodes"},
		{"fewer nodes", few, []Node{node("a", has(imageB)), node("b")}, "does not select 1 of the 2 nodes"},
		{"another ImagePrefetch brings them", elsewhere, []Node{node("a", knows(Image{Name: imageB, Digest: digestOf(imageB)}))}, ""},
		{"the images are there all the same", elsewhere, []Node{node("a", has(imageB))}, ""},
		{"a node that failed is selected", prefetch(imageB), []Node{node("a", has(imageB)), node("b", failed(imageB))}, ""},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			cluster := Cluster{Nodes: tt.nodes, Prefetches: []*v1alpha1.ImagePrefetch{tt.prefetch}}
			decision := Decide(Write{Old: deployment(), New: deployment(runs(imageB)), Prefetch: tt.prefetch, Cluster: cluster, Now: now})
			if decision.Outcome != OutcomeReady {
				t.Errorf("outcome %s, want %s", decision.Outcome, OutcomeReady)
			}
			if warnings := strings.Join(decision.Warnings, "\n"); tt.warns == "" && warnings != "" || !strings.Contains(warnings, tt.warns) {
				t.Errorf("warnings %q, want %q", warnings, tt.warns)
			}
			var want []Notice
			if tt.warns != "" {
				want = []Notice{{Warning: true, Reason: ReasonNodesNotSelected, Note: decision.Warnings[0]}}
			}
			if !slices.Equal(decision.Notices, want) {
				t.Errorf("notices %+v, want %+v", decision.Notices, want)
			}
		})
	}
}
