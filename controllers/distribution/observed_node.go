// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

// observedNode is a node and its NodeImageSet, as the plan sees them.
type observedNode struct {
	uid types.UID
	// set is nil where the node has none.
	set *v1alpha1.NodeImageSet
	// foreignSet says that there is a NodeImageSet which belongs to an earlier node of the
	// same name: the garbage collector takes it away. What it says of images may not
	// be true of this node, and what is written to it is lost.
	foreignSet bool
	planNode   plan.Node
	// nodeVersion and setVersion are what this view was made of.
	nodeVersion, setVersion string
}

// observeNodes views every node, and remembers the views for the next pass, which
// makes anew only what has changed, and sees by it that an agent moves.
func (r *Reconciler) observeNodes(nodes []corev1.Node, sets map[client.ObjectKey]*v1alpha1.NodeImageSet, now time.Time) map[string]*observedNode {
	views := make(map[string]*observedNode, len(nodes))
	for i := range nodes {
		node := &nodes[i]
		views[node.Name] = observeNode(r.nodeViews[node.Name], node, sets[client.ObjectKey{Name: node.Name}], now)
	}
	r.nodeViews = views
	return views
}

// observeNode views a node, given the view of the last pass if there was one.
func observeNode(before *observedNode, node *corev1.Node, set *v1alpha1.NodeImageSet, now time.Time) *observedNode {
	setVersion := ""
	if set != nil {
		setVersion = set.ResourceVersion
	}
	if before != nil && before.nodeVersion == node.ResourceVersion && before.setVersion == setVersion {
		return before
	}
	view := &observedNode{uid: node.UID, set: set, nodeVersion: node.ResourceVersion, setVersion: setVersion}
	if set != nil && ownedByOther(set, node.UID) {
		view.set, view.foreignSet = nil, true
	}
	view.planNode = plan.Node{
		Name:          node.Name,
		Labels:        node.Labels,
		Taints:        node.Spec.Taints,
		Platform:      node.Status.NodeInfo.OperatingSystem + "/" + node.Status.NodeInfo.Architecture,
		Zone:          node.Labels[corev1.LabelTopologyZone],
		Ready:         hasCondition(node, corev1.NodeReady),
		DiskPressure:  hasCondition(node, corev1.NodeDiskPressure),
		Unschedulable: node.Spec.Unschedulable,
		Acknowledged:  true,
	}
	for _, image := range node.Status.Images {
		// The kubelet has the names from CRI, which normalizes them.
		view.planNode.KubeletImages = append(view.planNode.KubeletImages, image.Names...)
	}
	if before != nil && before.uid != node.UID {
		before = nil
	}
	if view.set != nil {
		view.readSet(before, now)
	}
	return view
}

// readSet fills in what the NodeImageSet says, and when it last moved.
func (v *observedNode) readSet(before *observedNode, now time.Time) {
	status := &v.set.Status
	v.planNode.Acknowledged = status.ObservedGeneration == v.set.Generation
	ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
	v.planNode.Unsupported = ready != nil && ready.Reason == v1alpha1.ReasonUnsupportedRuntime
	v.planNode.RuntimeDown = ready != nil && ready.Reason == v1alpha1.ReasonRuntimeUnavailable

	v.planNode.HeardAt = now
	var entriesBefore map[string]plan.Entry
	if before != nil && before.set != nil {
		entriesBefore = before.planNode.Entries
		fellSilent := before.planNode.Acknowledged && !v.planNode.Acknowledged
		if !fellSilent && equality.Semantic.DeepEqual(&before.set.Status, status) {
			v.planNode.HeardAt = before.planNode.HeardAt
		}
	}

	v.planNode.Entries = make(map[string]plan.Entry, len(v.set.Spec.ImageSet))
	for i := range v.set.Spec.ImageSet {
		wanted := &v.set.Spec.ImageSet[i]
		v.planNode.Entries[wanted.Name] = plan.Entry{Wanted: wanted}
	}
	for i := range status.Images {
		answer := &status.Images[i]
		entry := v.planNode.Entries[answer.Name]
		entry.Status = answer
		v.planNode.Entries[answer.Name] = entry
	}
	for name, entry := range v.planNode.Entries {
		entry.ChangedAt, entry.ProgressAt = now, now
		if was, ok := entriesBefore[name]; ok {
			if equality.Semantic.DeepEqual(was.Wanted, entry.Wanted) && equality.Semantic.DeepEqual(was.Status, entry.Status) {
				entry.ChangedAt = was.ChangedAt
			}
			if !plan.Progressed(was, entry) {
				entry.ProgressAt = was.ProgressAt
			}
		}
		v.planNode.Entries[name] = entry
	}
}

// ownedByOther tells whether the set was made for an earlier node of the same
// name. One without an owner was made by hand, and is taken over.
func ownedByOther(set *v1alpha1.NodeImageSet, node types.UID) bool {
	return len(set.OwnerReferences) > 0 && !slices.ContainsFunc(set.OwnerReferences, func(owner metav1.OwnerReference) bool {
		return owner.UID == node
	})
}

func hasCondition(node *corev1.Node, kind corev1.NodeConditionType) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(condition corev1.NodeCondition) bool {
		return condition.Type == kind && condition.Status == corev1.ConditionTrue
	})
}
