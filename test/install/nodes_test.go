// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"path/filepath"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/install"
)

// pullSecret is what all Pods of the installation name in imagePullSecrets.
const pullSecret = "pull"

// expectNodesToReadNoSecret expects that a kubelet gets no Secret of Sluice's namespace but the pull secret
// of its Pods. One of the nodes runs no controller.
func expectNodesToReadNoSecret(ctx context.Context) {
	GinkgoHelper()
	var secrets corev1.SecretList
	Expect(site.Client.List(ctx, &secrets, client.InNamespace(install.Namespace))).To(Succeed())
	Expect(secrets.Items).To(ContainElement(HaveField("Name", secret(ctx).Name)))
	controllers := pods(ctx, "controller")
	withController := func(node *cluster.Node) bool {
		return slices.ContainsFunc(controllers, func(pod corev1.Pod) bool { return pod.Spec.NodeName == node.Name })
	}
	Expect(site.Cluster.Nodes()).To(ContainElement(Not(Satisfy(withController))))

	for _, node := range site.Cluster.Nodes() {
		kubelet := kubeletOf(node)
		var readable []string
		for _, object := range secrets.Items {
			err := kubelet.Get(ctx, client.ObjectKeyFromObject(&object), &corev1.Secret{})
			if err == nil {
				readable = append(readable, object.Name)
				continue
			}
			Expect(err).To(MatchError(apierrors.IsForbidden, "is forbidden"), object.Name)
		}
		Expect(readable).To(ConsistOf(pullSecret), "what the kubelet of %s reads, with a controller: %t", node.Name, withController(node))
		Expect(kubelet.List(ctx, &corev1.SecretList{}, client.InNamespace(install.Namespace))).To(MatchError(apierrors.IsForbidden, "is forbidden"))
	}
}

// kubeletOf is a client with the identity of a node.
func kubeletOf(node *cluster.Node) client.Client {
	GinkgoHelper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(node.Dir, "etc/kubernetes/kubeconfig"))
	Expect(err).NotTo(HaveOccurred())
	kubelet, err := client.New(config, client.Options{Scheme: site.Client.Scheme()})
	Expect(err).NotTo(HaveOccurred())
	return kubelet
}
