// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/install"
)

// leftovers are the objects of the installation that are still there. The pull secret is no part of it.
func leftovers(ctx context.Context) (found []string) {
	GinkgoHelper()
	for _, list := range []client.ObjectList{
		&corev1.PodList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &corev1.ConfigMapList{}, &corev1.SecretList{},
		&appsv1.DeploymentList{}, &appsv1.DaemonSetList{}, &batchv1.JobList{}, &policyv1.PodDisruptionBudgetList{}, &coordinationv1.LeaseList{},
		&rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{}, &rbacv1.RoleList{}, &rbacv1.RoleBindingList{},
		&admissionregistrationv1.MutatingWebhookConfigurationList{}, &admissionregistrationv1.ValidatingWebhookConfigurationList{},
		&admissionregistrationv1.ValidatingAdmissionPolicyList{}, &admissionregistrationv1.ValidatingAdmissionPolicyBindingList{},
	} {
		Expect(site.Client.List(ctx, list)).To(Succeed())
		for _, object := range items(list) {
			// The API server makes these two in every namespace.
			everywhere := object.GetName() == "default" || object.GetName() == "kube-root-ca.crt"
			pull := object.GetNamespace() == install.Namespace && object.GetName() == pullSecret
			ours := object.GetNamespace() == install.Namespace || object.GetNamespace() == "" && strings.HasPrefix(object.GetName(), "sluice")
			if ours && !everywhere && !pull {
				found = append(found, fmt.Sprintf("%T %s", object, object.GetName()))
			}
		}
	}
	var sets v1alpha1.NodeImageSetList
	Expect(site.Client.List(ctx, &sets)).To(Succeed())
	for _, set := range sets.Items {
		found = append(found, "NodeImageSet "+set.Name)
	}
	for _, kind := range []string{"issuers", "certificates", "certificaterequests"} {
		names, err := site.Cluster.Kubectl(ctx, "get", kind+".cert-manager.io", "--namespace", install.Namespace, "--output=name")
		Expect(err).NotTo(HaveOccurred())
		found = append(found, strings.Fields(names)...)
	}
	return found
}
