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
	"github.com/sluice-dev/sluice/internal/heartbeat"
)

// observedNode is a node and its NodeImageSet, as the plan sees them.
type observedNode struct {
	uid types.UID
	// set is nil if the node has none.
	set *v1alpha1.NodeImageSet
	// foreignSet says that the NodeImageSet of this name belongs to an earlier node, so that the
	// garbage collector is about to delete it. Its status may not be true of this node, and a write
	// to it would be lost.
	foreignSet bool
	planNode   plan.Node
	// nodeVersion and setVersion are the resource versions that this view was made from.
	nodeVersion, setVersion string
}

// observeNodes makes a view of each node. It keeps the views for the next pass, which makes only
// those again whose objects changed, and tells by comparison which agents make progress.
func (r *Reconciler) observeNodes(nodes []corev1.Node, sets map[client.ObjectKey]*v1alpha1.NodeImageSet, now time.Time) map[string]*observedNode {
	views := make(map[string]*observedNode, len(nodes))
	for i := range nodes {
		node := &nodes[i]
		views[node.Name] = observeNode(r.nodeViews[node.Name], node, sets[client.ObjectKey{Name: node.Name}], now)
	}
	r.nodeViews = views
	return views
}

// observeNode makes the view of a node. before is its view in the last pass; nil if there was none.
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

// readSet fills in what the NodeImageSet says, and when its agent was last heard and made progress.
func (v *observedNode) readSet(before *observedNode, now time.Time) {
	status := &v.set.Status
	v.planNode.Acknowledged = heartbeat.Acknowledged(v.set)
	ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
	v.planNode.Unsupported = ready != nil && ready.Reason == v1alpha1.ReasonUnsupportedRuntime
	v.planNode.RuntimeDown = ready != nil && ready.Reason == v1alpha1.ReasonRuntimeUnavailable

	if before == nil {
		before = &observedNode{}
	}
	entriesBefore := before.planNode.Entries
	v.planNode.HeardAt = heartbeat.HeardAt(before.set, v.set, before.planNode.HeardAt, now)

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

// ownedByOther reports whether the set belongs to an earlier node of the same name. A set without an
// owner was made by hand; this node takes it over.
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
