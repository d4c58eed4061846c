// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestWhichChangesStartAPass(t *testing.T) {
	for because, test := range map[string]struct {
		change func(*corev1.Node)
		want   bool
	}{
		"a heartbeat":   {func(n *corev1.Node) { n.Status.Conditions[0].LastHeartbeatTime = metav1.Now() }, false},
		"a longer list": {func(n *corev1.Node) { n.Status.Images = []corev1.ContainerImage{{Names: []string{appV1}}} }, false},
		"an annotation": {func(n *corev1.Node) { n.Annotations = map[string]string{"a": "b"} }, false},
		"a label":       {func(n *corev1.Node) { n.Labels = map[string]string{"a": "b"} }, true},
		"a taint":       {func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "a"}} }, true},
		"a cordon":      {func(n *corev1.Node) { n.Spec.Unschedulable = true }, true},
		"not Ready":     {func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }, true},
		"disk pressure": {func(n *corev1.Node) { n.Status.Conditions[1].Status = corev1.ConditionTrue }, true},
		"its platform":  {func(n *corev1.Node) { n.Status.NodeInfo.Architecture = "arm64" }, true},
		"another node":  {func(n *corev1.Node) { n.UID = "n2" }, true},
	} {
		before := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse},
		}}}
		after := before.DeepCopy()
		test.change(after)
		if nodeChanged(before, after) != test.want {
			t.Errorf("%s: want %v", because, test.want)
		}
	}
	for because, test := range map[string]struct {
		change func(*v1alpha1.ImagePrefetch)
		want   bool
	}{
		"its own status":      {func(p *v1alpha1.ImagePrefetch) { p.Status.ReadyNodes = 1 }, false},
		"some annotation":     {func(p *v1alpha1.ImagePrefetch) { p.Annotations = map[string]string{"a": "b"} }, false},
		"a refresh":           {func(p *v1alpha1.ImagePrefetch) { p.Annotations = map[string]string{v1alpha1.RefreshAnnotation: "1"} }, true},
		"the spec":            {func(p *v1alpha1.ImagePrefetch) { p.Generation = 2 }, true},
		"deletion, finalized": {func(p *v1alpha1.ImagePrefetch) { p.DeletionTimestamp = ptr.To(metav1.Now()) }, true},
	} {
		before := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Generation: 1}}
		after := before.DeepCopy()
		test.change(after)
		if prefetchChanged(before, after) != test.want {
			t.Errorf("%s: want %v", because, test.want)
		}
	}
}
