// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// What a kubelet may read is decided by the API server, which goes by the Pods that are bound to its
// node. test/install asks the same of the nodes of a cluster.
func TestNodesReadNoSecretButThePullSecretsOfTheirPods(t *testing.T) {
	config, admin, _ := apiServer(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}))
	const pull = "registry"
	ours := []string{"sluice-controller-tls", "sluice-ca"}
	for _, name := range append(slices.Clone(ours), pull) {
		must(admin.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}))
	}
	for i, certificate := range []string{"{}", "{source: SelfManaged}", "{issuerRef: {name: ours}}"} {
		pods := render(t, "{image: {pullSecrets: [{name: "+pull+"}]}, certificate: "+certificate+"}").pods(t)
		for name, workload := range map[string]string{"agent": agentPod, "controller": controllerPod} {
			node := fmt.Sprintf("%s-%d", name, i)
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: node}, Spec: pods[workload].Spec}
			pod.Spec.NodeName = node
			must(admin.Create(ctx, pod))
			kubelet, err := client.New(nodeIdentity(config, node), client.Options{})
			must(err)
			read := func(name string) error {
				return kubelet.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &corev1.Secret{})
			}
			// The API server learns of the Pod's Secrets all at once, a moment later.
			wait(t, node+" does not read the pull secret of its Pod", func() bool { return read(pull) == nil })
			for _, name := range ours {
				if err := read(name); !apierrors.IsForbidden(err) {
					t.Errorf("a node with the %s reads %s with the certificate %s: %v", workload, name, certificate, err)
				}
			}
		}
	}
}

// nodeIdentity is what a kubelet is to the API server.
func nodeIdentity(config *rest.Config, node string) *rest.Config {
	config = impersonate(config, "system:node:"+node)
	config.Impersonate.Groups = []string{"system:nodes", "system:authenticated"}
	return config
}
