// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestMessagesAreAboutThisDeployment(t *testing.T) {
	unlisted := prefetch(imageA)
	two := []Node{node("a", has(imageB)), node("b"), node("c")}
	for _, tt := range []struct {
		reason   string
		runs     []string
		prefetch *v1alpha1.ImagePrefetch
		nodes    []Node
		says     []string
	}{
		{"in numbers", []string{imageB}, pulling(imageB, imageC), two, []string{"2 of 3 nodes that its Pods can run on still lack " + imageB}},
		{
			reason:   "failures are named",
			runs:     []string{imageB},
			prefetch: pulling(imageB),
			nodes:    []Node{node("a"), node("b", failed(imageB))},
			says:     []string{"2 of 2 nodes", "1 failed, such as b"},
		},
		{
			"both digests, where they differ", []string{at("ghcr.io/org/app", imageC)}, unlisted, two,
			[]string{digestOf(imageC), digestOf(imageA)},
		},
		{"what is to be resolved", []string{imageB}, func() *v1alpha1.ImagePrefetch {
			p := pulling(imageB)
			p.Status.Images = nil
			return p
		}(), two, []string{imageB + " is to be resolved"}},
		{
			reason: "Ready, since failures are allowed, and yet the tag has no digest",
			runs:   []string{imageB},
			prefetch: func() *v1alpha1.ImagePrefetch {
				p := prefetch(imageB)
				p.Status.Images = nil
				return p
			}(),
			nodes: []Node{node("a")},
			says:  []string{`ImagePrefetch "app" is Ready, but ` + imageB + " is to be resolved; 1 of 1 nodes"},
		},
		{
			reason:   "the failure of the node that is named",
			runs:     []string{imageB},
			prefetch: failing(imageB),
			nodes:    []Node{node("a", failed(imageB)), node("node-7", failed(imageB))},
			says:     []string{"2 failed, such as a: " + v1alpha1.ReasonImagePullUnauthorized + " on node-7"},
		},
		{
			reason:   "the failure of the node that is named, without naming it again",
			runs:     []string{imageB},
			prefetch: failing(imageB),
			nodes:    []Node{node("node-7", failed(imageB))},
			says:     []string{"1 failed, such as node-7: " + v1alpha1.ReasonImagePullUnauthorized + "; to let it go"},
		},
		{
			reason:   "nobody takes Pods",
			runs:     []string{imageB},
			prefetch: pulling(imageB),
			nodes:    []Node{node("a", func(n *Node) { n.Ready = false })},
			says:     []string{"no node that its Pods can run on takes Pods now"},
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			cluster := Cluster{Nodes: tt.nodes, Prefetches: []*v1alpha1.ImagePrefetch{tt.prefetch}}
			decision := Decide(Write{Old: deployment(), New: deployment(runs(tt.runs...)), Prefetch: tt.prefetch, Cluster: cluster, Now: now})
			warnings := strings.Join(decision.Warnings, "\n")
			for _, says := range tt.says {
				if !strings.Contains(warnings, says) {
					t.Errorf("%q lacks %q", warnings, says)
				}
			}
		})
	}
}
