// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

func TestPlanOfNode(t *testing.T) {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "a", UID: "n1", ResourceVersion: "1", Labels: map[string]string{corev1.LabelTopologyZone: "z1"}, Annotations: map[string]string{"large": "one"},
		},
		Spec: corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}}, PodCIDR: "10.0.0.0/24"},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"},
				{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue}, {Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue},
			},
			NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "arm64", KernelVersion: "6.18"},
			Images:   []corev1.ContainerImage{{Names: []string{appV1, webV1}, SizeBytes: 5}},
		},
	}
	trimmed, err := trimNode(node.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	want := plan.Node{
		Name: "a", Labels: node.Labels, Taints: node.Spec.Taints, Platform: "linux/arm64", Zone: "z1",
		Ready: true, Unschedulable: true, DiskPressure: true, KubeletImages: []string{appV1, webV1}, Acknowledged: true,
	}
	for what, node := range map[string]*corev1.Node{"as it is": node, "as the cache keeps it": trimmed.(*corev1.Node)} {
		if diff := cmp.Diff(want, observeNode(nil, node, nil, noon).planNode); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	if kept := trimmed.(*corev1.Node); len(kept.Annotations) != 0 || kept.Spec.PodCIDR != "" ||
		len(kept.Status.Conditions) != 2 || kept.Status.Conditions[0].Reason != "" {
		t.Errorf("the cache keeps more than it needs: %+v", kept)
	}
}

// TestWhenAnAgentMadeProgress follows one node through passes that are a minute apart.
func TestWhenAnAgentMadeProgress(t *testing.T) {
	at := func(minute int) time.Time { return noon.Add(time.Duration(minute) * time.Minute) }
	asked := func(generation int64, images ...string) *v1alpha1.NodeImageSet {
		set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "a", Generation: generation}}
		for _, image := range images {
			set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: image, Digest: one})
		}
		return set
	}
	answered := func(set *v1alpha1.NodeImageSet, observed int64, states ...v1alpha1.ImageState) *v1alpha1.NodeImageSet {
		set.Status.ObservedGeneration = observed
		for i, state := range states {
			set.Status.Images = append(set.Status.Images, v1alpha1.NodeImageStatus{Name: set.Spec.ImageSet[i].Name, State: state})
		}
		return set
	}
	steps := []struct {
		because         string
		set             *v1alpha1.NodeImageSet
		acknowledged    bool
		heard, app, web int // minutes; app and web are when their entries made progress
	}{
		0: {"a spec counts from the pass that observed it first", asked(1, appV1), false, 0, 0, 0},
		1: {"time alone is no progress", asked(1, appV1), false, 0, 0, 0},
		2: {"a longer spec does not hide the silence of an agent that does not answer", asked(2, appV1, webV1), false, 0, 0, 2},
		3: {"an answer is heard", answered(asked(2, appV1, webV1), 2, v1alpha1.ImagePulling, v1alpha1.ImagePending), true, 3, 3, 3},
		4: {"progress of one image is not that of the other", answered(asked(2, appV1, webV1), 2, v1alpha1.ImagePresent, v1alpha1.ImagePending), true, 4, 4, 3},
		5: {"the end of its work is heard", answered(asked(2, appV1, webV1), 2, v1alpha1.ImagePresent, v1alpha1.ImagePresent), true, 5, 4, 5},
		6: {
			because: "a new spec gives an agent that owed nothing its whole time",
			set:     answered(asked(3, appV1, webV1), 2, v1alpha1.ImagePresent, v1alpha1.ImagePresent),
			heard:   6, app: 4, web: 5,
		},
		7: {"and is not heard until it answers", answered(asked(3, appV1, webV1), 2, v1alpha1.ImagePresent, v1alpha1.ImagePresent), false, 6, 4, 5},
	}
	var view *observedNode
	for i, step := range steps {
		step.set.ResourceVersion, step.set.UID = string(rune('a'+i)), "s1"
		view = observeNode(view, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "n1"}}, step.set, at(i))
		if view.planNode.Acknowledged != step.acknowledged {
			t.Errorf("%s: acknowledged %v", step.because, view.planNode.Acknowledged)
		}
		if !view.planNode.HeardAt.Equal(at(step.heard)) {
			t.Errorf("%s: heard at %s, want %s", step.because, view.planNode.HeardAt, at(step.heard))
		}
		for image, want := range map[string]int{appV1: step.app, webV1: step.web} {
			if entry, ok := view.planNode.Entries[image]; ok && !entry.ProgressAt.Equal(at(want)) {
				t.Errorf("%s: %s made progress at %s, want %s", step.because, image, entry.ProgressAt, at(want))
			}
		}
	}
}

func TestARetryIsNoProgress(t *testing.T) {
	pull := func(change ...func(*v1alpha1.NodeImageStatus)) v1alpha1.NodeImageStatus {
		status := v1alpha1.NodeImageStatus{Name: appV1, State: v1alpha1.ImagePulling, Digest: one, SizeBytes: 100, PulledBytes: 10, Attempts: 1}
		for _, f := range change {
			f(&status)
		}
		return status
	}
	waits := func(s *v1alpha1.NodeImageStatus) {
		s.State, s.Reason = v1alpha1.ImagePending, v1alpha1.ReasonNoProgress
	}
	retries := func(s *v1alpha1.NodeImageStatus) {
		s.Attempts, s.PulledBytes, s.Reason = s.Attempts+1, 0, v1alpha1.ReasonNoProgress
	}
	for _, test := range []struct {
		because       string
		before, after v1alpha1.NodeImageStatus
		progress      bool
	}{
		{"a try that ended", pull(), pull(waits), false},
		{"the next one, which begins at zero", pull(waits), pull(retries), false},
		{"when it ended", pull(), pull(func(s *v1alpha1.NodeImageStatus) { s.FinishedAt = ptr.To(metav1.NewTime(noon)) }), false},
		{"the limit of tries", pull(retries), pull(retries, func(s *v1alpha1.NodeImageStatus) { s.State = v1alpha1.ImageFailed }), false},
		{"bytes", pull(), pull(func(s *v1alpha1.NodeImageStatus) { s.PulledBytes++ }), true},
		{"bytes of a further try", pull(retries), pull(retries, func(s *v1alpha1.NodeImageStatus) { s.PulledBytes = 1 }), true},
		{"the size", pull(func(s *v1alpha1.NodeImageStatus) { s.SizeBytes = 0 }), pull(), true},
		{"a digest", pull(func(s *v1alpha1.NodeImageStatus) { s.Digest = "" }), pull(), true},
		{"an answer of the same digest", pull(), pull(func(s *v1alpha1.NodeImageStatus) { s.Request = "m" }), true},
		{"a slot on the node", pull(func(s *v1alpha1.NodeImageStatus) { s.State, s.Attempts = v1alpha1.ImagePending, 0 }), pull(), true},
		{"a deletion, from which on it comes again", pull(func(s *v1alpha1.NodeImageStatus) { s.State = v1alpha1.ImagePresent }), pull(), true},
	} {
		t.Run(test.because, func(t *testing.T) {
			at := func(version string, status v1alpha1.NodeImageStatus) *v1alpha1.NodeImageSet {
				set := set("a", "s1", version)
				set.Spec.ImageSet = []v1alpha1.NodeImage{{Name: appV1}}
				set.Status.Images = []v1alpha1.NodeImageStatus{status}
				return set
			}
			node, later := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "n1"}}, noon.Add(time.Minute)
			view := observeNode(observeNode(nil, node, at("1", test.before), noon), node, at("2", test.after), later)
			entry, want := view.planNode.Entries[appV1], noon
			if test.progress {
				want = later
			}
			if !entry.ProgressAt.Equal(want) || !entry.ChangedAt.Equal(later) {
				t.Errorf("made progress at %v and changed at %v, want %v and %v", entry.ProgressAt, entry.ChangedAt, want, later)
			}
		})
	}
}

func TestSetOfAnotherNode(t *testing.T) {
	owned := func(uids ...string) *v1alpha1.NodeImageSet {
		set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "1"}}
		for _, uid := range uids {
			set.OwnerReferences = append(set.OwnerReferences, metav1.OwnerReference{Kind: "Node", Name: "a", UID: types.UID(uid)})
		}
		return set
	}
	for because, test := range map[string]struct {
		set     *v1alpha1.NodeImageSet
		foreign bool
	}{
		"its own":                         {owned("n1"), false},
		"an earlier node's of that name":  {owned("n0"), true},
		"nobody's, so it may be taken":    {owned(), false},
		"its own, and an earlier node's":  {owned("n0", "n1"), false},
		"there is none, so one is needed": {nil, false},
	} {
		view := observeNode(nil, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "n1"}}, test.set, noon)
		if view.foreignSet != test.foreign || view.foreignSet && (view.set != nil || !view.planNode.Acknowledged) {
			t.Errorf("%s: foreign is %v", because, view.foreignSet)
		}
	}
}

func TestViewsAreMadeAgainOnlyForChangedObjects(t *testing.T) {
	node := func(version string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "n1", ResourceVersion: version}}
	}
	view := observeNode(nil, node("1"), set("a", "s1", "1"), noon)
	if observeNode(view, node("1"), set("a", "s1", "1"), noon) != view {
		t.Error("the view was made again though nothing changed")
	}
	if observeNode(view, node("2"), set("a", "s1", "1"), noon) == view || observeNode(view, node("1"), set("a", "s1", "2"), noon) == view ||
		observeNode(view, node("1"), nil, noon) == view {
		t.Error("the view was kept though an object changed")
	}
}
