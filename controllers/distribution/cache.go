// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"fmt"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CacheOptions keep the cache of a large cluster small.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject:         map[client.Object]cache.ByObject{&corev1.Node{}: {Transform: trimNode}},
	}
}

// trimNode keeps those fields of a Node that the plan reads: a few hundred bytes instead of tens of
// thousands.
func trimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("trim a Node: got %T", object)
	}
	trimmed := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, Labels: node.Labels,
			CreationTimestamp: node.CreationTimestamp,
		},
		Spec: corev1.NodeSpec{Unschedulable: node.Spec.Unschedulable, Taints: node.Spec.Taints},
		Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{
			OperatingSystem: node.Status.NodeInfo.OperatingSystem, Architecture: node.Status.NodeInfo.Architecture,
		}},
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady || condition.Type == corev1.NodeDiskPressure {
			trimmed.Status.Conditions = append(trimmed.Status.Conditions,
				corev1.NodeCondition{Type: condition.Type, Status: condition.Status})
		}
	}
	for _, image := range node.Status.Images {
		names := make([]string, len(image.Names))
		for i, name := range image.Names {
			names[i] = unique.Make(name).Value() // most nodes have the same images
		}
		trimmed.Status.Images = append(trimmed.Status.Images, corev1.ContainerImage{Names: names})
	}
	return trimmed, nil
}
