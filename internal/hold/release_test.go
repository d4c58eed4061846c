// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A release rests on where the Pods can run.
func TestReleaseFailsWhenThePlacementMoved(t *testing.T) {
	holding := deployment(runs(imageB), held(5*time.Minute))
	selecting := func(value string) edit {
		return func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"pool": value} }
	}
	affine := func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}
	}
	tolerant := func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	}
	bound := func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeName = "a" }
	for _, tt := range []struct {
		reason      string
		read, moved edit
	}{
		{"a node selector came", func(*appsv1.Deployment) {}, selecting("gpu")},
		{"a node selector went", selecting("web"), func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = nil }},
		{"a node selector changed", selecting("web"), selecting("gpu")},
		{"an affinity came", func(*appsv1.Deployment) {}, affine},
		{"an affinity went", affine, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Affinity = nil }},
		{"a toleration came", func(*appsv1.Deployment) {}, tolerant},
		{"a toleration went", tolerant, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Tolerations = nil }},
		{"a node was named", func(*appsv1.Deployment) {}, bound},
		{"a node is named no more", bound, func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeName = "" }},
	} {
		read := with(holding, tt.read)
		step := Next(read, prefetch(imageB), Cluster{Nodes: []Node{node("a")}}, now)
		if !applies(t, read, step.Patch) {
			t.Errorf("%s: the release does not apply to what was read", tt.reason)
		}
		if moved := with(read, tt.moved); applies(t, moved, step.Patch) || step.Fits(moved) {
			t.Errorf("%s: the release applies all the same", tt.reason)
		}
	}
}

// A release because the images are there does not depend on what else is written meanwhile.
func TestReleaseGoesThroughWhileItIsScaled(t *testing.T) {
	denied := pulling(imageB)
	denied.Status.Conditions[0].Reason = v1alpha1.ReasonPolicyDenied
	there, missing := Cluster{Nodes: []Node{node("a", has(imageB))}}, Cluster{Nodes: []Node{node("a")}}
	there.Prefetches = []*v1alpha1.ImagePrefetch{pulling(imageB)}
	for _, tt := range []struct {
		end      End
		prefetch *v1alpha1.ImagePrefetch
		cluster  Cluster
	}{
		{EndReady, prefetch(imageB), missing},
		{EndEvidence, there.Prefetches[0], there},
		{EndNoMatchingNodes, pulling(imageB), Cluster{}},
		{EndDenied, denied, missing},
	} {
		read := deployment(runs(imageB), held(5*time.Minute))
		read.ResourceVersion = "7"
		step := Next(read, tt.prefetch, tt.cluster, now)
		if step.End != tt.end {
			t.Errorf("ends %q, want %q", step.End, tt.end)
		}
		scaled := with(read, func(d *appsv1.Deployment) { d.ResourceVersion, d.Spec.Replicas = "8", ptr.To[int32](3) })
		if !applies(t, scaled, step.Patch) || !step.Fits(scaled) {
			t.Errorf("%s: the release does not apply to a Deployment that was scaled meanwhile", tt.end)
		}
		if optedOut := with(read, annotate(v1alpha1.GateAnnotation, "skip")); applies(t, optedOut, step.Patch) {
			t.Errorf("%s: the release applies to a Deployment whose owner has opted out meanwhile", tt.end)
		}
	}
}

func TestTheLastTenSetsAreRemembered(t *testing.T) {
	d := deployment(dropAnnotation(v1alpha1.ReleasedAnnotation), runs("app:0"))
	for i := 1; i <= 12; i++ {
		next := with(d, runs(fmt.Sprintf("app:%d", i)))
		d = patched(t, next, Decide(Write{Old: d, New: next, Prefetch: prefetch(fmt.Sprintf("app:%d", i)), Cluster: empty(), Now: now}).Patch)
	}
	for i, known := range map[int]bool{12: true, 11: true, 3: true, 2: false, 0: false} {
		outcome := Decide(Write{Old: d, New: with(d, runs(fmt.Sprintf("app:%d", i))), Cluster: empty(), Now: now}).Outcome
		if got := outcome == OutcomeKnown; got != known {
			t.Errorf("a rollback to app:%d: known %t, want %t", i, got, known)
		}
	}
}
