// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"

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
