// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kernelSettings are those that a kubelet wants under /proc/sys. They are the
// whole host's, so a node sees files that say so, and the kernel keeps its own.
var kernelSettings = map[string]string{
	"kernel/keys/root_maxbytes": "25000000",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
}

func (n *Node) newKubelet() *Daemon {
	command := func() *exec.Cmd {
		return exec.Command(filepath.Join(n.cluster.bin.AssetsDir, "kubelet"),
			"--config=/etc/kubernetes/kubelet.json",
			"--kubeconfig=/etc/kubernetes/kubeconfig",
			"--hostname-override="+n.Name,
			"--node-ip="+n.IP,
			"--node-labels="+n.labels(),
			"--register-with-taints="+strings.Join(n.options.Taints, ","),
		)
	}
	return n.newDaemon("kubelet", command, n.nodeReady)
}

func (n *Node) labels() string {
	labels := maps.Clone(n.options.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if n.options.Zone != "" {
		labels[corev1.LabelTopologyZone] = n.options.Zone
	}
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return strings.Join(pairs, ",")
}

// startKubelet starts the kubelet once there is an API server.
func (n *Node) startKubelet(ctx context.Context) error {
	select {
	case <-n.cluster.ControlPlane.ready:
		return n.Kubelet.Start(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// nodeReady says why the Node is not Ready. What the API server remembers from
// before the kubelet's start does not count.
func (n *Node) nodeReady(ctx context.Context, kubelet *Process) error {
	node, err := n.cluster.ControlPlane.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	// Ready is not all: the controller manager takes this taint away a moment later, and
	// until then the node takes no Pods.
	for _, taint := range node.Spec.Taints {
		if taint.Key == corev1.TaintNodeNotReady {
			return fmt.Errorf("node %s still has the taint %s", n.Name, taint.Key)
		}
	}
	started := kubelet.Started.Truncate(time.Second) // as precise as a heartbeat
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue && !condition.LastHeartbeatTime.Time.Before(started) {
			return nil
		}
	}
	return fmt.Errorf("node %s is not Ready", n.Name)
}

// writeKubeletFiles writes the kubelet's configuration and credentials.
func (n *Node) writeKubeletFiles() error {
	dir := filepath.Join(n.Dir, "etc/kubernetes")
	plane := n.cluster.ControlPlane
	if err := plane.authority.writeKubeconfig(filepath.Join(dir, "kubeconfig"), plane.server, "system:node:"+n.Name, nodesGroup); err != nil {
		return err
	}
	if n.KubeProxy != nil {
		if err := plane.authority.writeKubeconfig(filepath.Join(dir, "kube-proxy.kubeconfig"), plane.server, "system:kube-proxy"); err != nil {
			return err
		}
	}
	config, err := json.MarshalIndent(n.kubeletConfig(), "", "  ")
	if err != nil {
		return err
	}
	return writeFiles(dir, map[string]string{
		"ca.crt":       string(plane.authority.pem),
		"kubelet.json": string(config),
	})
}

// kubeletConfig is a KubeletConfiguration; its type is in a module that
// nothing else of ours needs.
func (n *Node) kubeletConfig() map[string]any {
	config := map[string]any{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": "/etc/kubernetes/ca.crt"},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"resolvConf":    "/etc/resolv.conf",
		"cgroupRoot":    n.cgroup(),
		"cgroupDriver":  "cgroupfs",
		// Nodes share the host's cores and memory, and enforce no share.
		"enforceNodeAllocatable": []string{},
		"failCgroupV1":           false,
		"failSwapOn":             false,
	}
	// Nodes share the host's disk, whose level is not theirs to judge. Images may have one of their own,
	// for which the kubelet's defaults hold.
	eviction := map[string]string{"nodefs.available": "0%", "nodefs.inodesFree": "0%", "memory.available": "0%"}
	if slices.ContainsFunc(n.options.Disks, func(d Disk) bool { return d.Path == ContainerdRoot }) {
		eviction["imagefs.available"], eviction["imagefs.inodesFree"] = "15%", "5%"
	} else {
		eviction["imagefs.available"], eviction["imagefs.inodesFree"] = "0%", "0%"
		config["imageGCHighThresholdPercent"], config["imageGCLowThresholdPercent"] = 100, 99
	}
	config["evictionHard"] = eviction
	if n.cluster.options.Services {
		config["clusterDNS"] = []string{n.cluster.GatewayIP}
		config["clusterDomain"] = clusterDomain
	}
	return config
}
