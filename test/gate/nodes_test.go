// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// leasePeriod is how often the leases of nodes are renewed, as a kubelet does by default.
const leasePeriod = 10 * time.Second

// kubelets keep the nodes of these specs Ready: they have no kubelet, and the node lifecycle
// controller goes by the leases.
type kubelets struct {
	mu    sync.Mutex
	nodes map[string]bool
}

// run renews leases until ctx ends.
func (k *kubelets) run(ctx context.Context) {
	ticker := time.NewTicker(leasePeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			k.mu.Lock()
			for name := range k.nodes {
				_ = k.renew(ctx, name) // the next one may succeed; a node that goes has no lease
			}
			k.mu.Unlock()
		}
	}
}

func (k *kubelets) renew(ctx context.Context, name string) error {
	var lease coordinationv1.Lease
	if err := api.Get(ctx, client.ObjectKey{Namespace: corev1.NamespaceNodeLease, Name: name}, &lease); err != nil {
		return err
	}
	lease.Spec.RenewTime = ptr.To(metav1.NowMicro())
	return api.Update(ctx, &lease)
}

// add makes a Ready node with a label "pool", until the spec or the suite ends.
func (k *kubelets) add(ctx context.Context, name, pool string) {
	GinkgoHelper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pool": pool}}}
	Expect(api.Create(ctx, node)).To(Succeed())
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &name, LeaseDurationSeconds: ptr.To[int32](40), RenewTime: ptr.To(metav1.NowMicro()),
		},
	}
	Expect(api.Create(ctx, lease)).To(Succeed())
	// A patch: the node lifecycle controller writes to a new node as well.
	before := node.DeepCopy()
	node.Status.NodeInfo.OperatingSystem, node.Status.NodeInfo.Architecture = "linux", "amd64"
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	Expect(api.Status().Patch(ctx, node, client.MergeFrom(before))).To(Succeed())
	// A taint that the node lifecycle controller sets until it has seen the node Ready.
	Eventually(func(g Gomega) {
		g.Expect(api.Get(ctx, client.ObjectKeyFromObject(node), node)).To(Succeed())
		g.Expect(node.Spec.Taints).To(BeEmpty())
	}).Should(Succeed())
	k.mu.Lock()
	defer k.mu.Unlock()
	k.nodes[name] = true
	DeferCleanup(func(ctx SpecContext) {
		k.mu.Lock()
		delete(k.nodes, name)
		k.mu.Unlock()
		for _, object := range []client.Object{node, lease, &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: name}}} {
			Expect(client.IgnoreNotFound(api.Delete(ctx, object))).To(Succeed())
		}
	})
}

// digestOf is what a tag of the repository means in these specs.
func digestOf(tag string) string { return digest.FromString(repository + ":" + tag).String() }

// reports has the agent of a node say how tags of the repository are there.
func reports(ctx context.Context, node string, state v1alpha1.ImageState, tags ...string) {
	GinkgoHelper()
	set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: node}}
	err := api.Get(ctx, client.ObjectKeyFromObject(set), set)
	Expect(client.IgnoreNotFound(err)).NotTo(HaveOccurred())
	set.Spec = v1alpha1.NodeImageSetSpec{NodeName: node}
	var images []v1alpha1.NodeImageStatus
	for _, tag := range tags {
		name := repository + ":" + tag
		set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: name, Digest: digestOf(tag)})
		images = append(images, v1alpha1.NodeImageStatus{Name: name, Digest: digestOf(tag), State: state})
	}
	if err != nil {
		Expect(asController.Create(ctx, set)).To(Succeed())
	} else {
		Expect(asController.Update(ctx, set)).To(Succeed())
	}
	set.Status = v1alpha1.NodeImageSetStatus{ObservedGeneration: set.Generation, Images: images}
	Expect(api.Status().Update(ctx, set)).To(Succeed())
}
