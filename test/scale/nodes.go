// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// As a kubelet does without flags, on a node where nothing changes.
const (
	leaseInterval  = 10 * time.Second
	statusInterval = 5 * time.Minute
	// listedImages is how many images a kubelet lists.
	listedImages = 50
)

// roleLabel tells measured nodes from those of the probe.
const (
	roleLabel    = "scale.sluice.dev/role"
	roleMeasured = "measured"
	roleProbe    = "probe"
)

// concurrentSetups is how many nodes are made at a time.
const concurrentSetups = 16

// addNodes makes the measured nodes.
func (r *rig) addNodes(ctx context.Context) error {
	group, waiting := errgroup.WithContext(ctx)
	group.SetLimit(concurrentSetups)
	for index := range r.opts.nodes {
		group.Go(func() error {
			if waiting.Err() != nil {
				return waiting.Err()
			}
			return r.addNode(ctx, index)
		})
	}
	return group.Wait()
}

// addNode makes a measured node, with heartbeats and an agent until ctx ends.
func (r *rig) addNode(ctx context.Context, index int) error {
	node, err := r.register(ctx, fmt.Sprintf("node-%05d.example.internal", index), index, roleMeasured)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.measured = append(r.measured, metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID})
	r.mu.Unlock()
	return r.startAgent(ctx, node, index)
}

// register makes a node with heartbeats.
func (r *rig) register(ctx context.Context, name string, index int, role string) (*corev1.Node, error) {
	node := newNode(name, index, role)
	if err := r.client.Create(ctx, node); err != nil {
		return nil, fmt.Errorf("create node %s: %w", name, err)
	}
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: corev1.NamespaceNodeLease, Name: name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To(name), LeaseDurationSeconds: ptr.To[int32](40), RenewTime: &metav1.MicroTime{Time: time.Now()},
		},
	}
	if err := r.client.Create(ctx, lease); err != nil {
		return nil, fmt.Errorf("create the lease of node %s: %w", name, err)
	}
	r.running.Go(func() { r.beat(ctx, node.DeepCopy(), lease) })
	return node, nil
}

// beat sends the heartbeats of a node. Kubelets have an identity and connections of their own, these
// are an administrator's and share some.
func (r *rig) beat(ctx context.Context, node *corev1.Node, lease *coordinationv1.Lease) {
	ticker := time.NewTicker(leaseInterval)
	defer ticker.Stop()
	reported := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		if err := r.client.Update(ctx, lease); err != nil {
			_ = r.client.Get(ctx, client.ObjectKeyFromObject(lease), lease) // the next beat tries again
			continue
		}
		r.heartbeats.Add(1)
		if time.Since(reported) < statusInterval {
			continue
		}
		if err := r.client.Status().Patch(ctx, node, client.RawPatch(types.StrategicMergePatchType, heartbeatPatch())); err == nil {
			reported = time.Now()
		}
	}
}

// heartbeatPatch is what a kubelet changes when nothing else has changed.
func heartbeatPatch() []byte {
	conditions := nodeConditions(time.Now())
	for i := range conditions {
		conditions[i].LastTransitionTime = metav1.Time{}
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": conditions}})
	if err != nil {
		panic(err) // conditions always marshal
	}
	return patch
}

func nodeConditions(now time.Time) []corev1.NodeCondition {
	healthy := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{
			Type: kind, Status: status, Reason: reason, Message: message,
			LastHeartbeatTime: metav1.Time{Time: now}, LastTransitionTime: metav1.Time{Time: now},
		}
	}
	return []corev1.NodeCondition{
		healthy(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		healthy(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		healthy(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
		healthy(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"),
	}
}

// newNode is a node as kubelet and cloud provider make it, some 15 KB in size.
func newNode(name string, index int, role string) *corev1.Node {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			roleLabel:                   role,
			corev1.LabelHostname:        name,
			corev1.LabelOSStable:        "linux",
			corev1.LabelArchStable:      "amd64",
			corev1.LabelInstanceType:    "m-8x32",
			corev1.LabelTopologyRegion:  "region-1",
			corev1.LabelTopologyZone:    fmt.Sprintf("region-1-%c", 'a'+index%3),
			"node.example.com/nodepool": fmt.Sprintf("pool-%d", index%8),
		}},
		Spec: corev1.NodeSpec{ProviderID: "example:///" + name},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity, Conditions: nodeConditions(time.Now()),
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "6.12.0", OSImage: "Linux",
				ContainerRuntimeVersion: "containerd://2.2.0", KubeletVersion: "v1.36.0",
			},
		},
	}
	for i := range listedImages {
		repository := fmt.Sprintf("%s/platform/component-%02d", registry, i)
		node.Status.Images = append(node.Status.Images, corev1.ContainerImage{
			Names: []string{repository + "@" + digestOf(repository), repository + ":v1.2.3"}, SizeBytes: imageSize,
		})
	}
	return node
}
