// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/install"
)

// appliedAsObjects installs what `helm template` prints with `kubectl apply`, which takes hooks for
// ordinary objects, and takes it away as docs/install.md says ("Without hooks").
func appliedAsObjects() {
	const job = "job/sluice-uninstall"
	var dir string
	kubectl := func(ctx context.Context, args ...string) string {
		GinkgoHelper()
		out, err := site.Cluster.Kubectl(ctx, append([]string{"--namespace=" + install.Namespace}, args...)...)
		Expect(err).NotTo(HaveOccurred())
		return out
	}
	// template is a file of what the chart is rendered to.
	template := func(ctx context.Context, name string, args ...string) string {
		GinkgoHelper()
		out, err := site.Helm(ctx, append([]string{"template", install.Release, site.Chart, "--namespace=" + install.Namespace,
			"--kube-version=1.36.0", "--set=image.tag=" + install.Version, "--set=agent.minFreeDisk=0%", "--set=certificate.source=SelfManaged"}, args...)...)
		Expect(err).NotTo(HaveOccurred())
		path := filepath.Join(dir, name+".yaml")
		Expect(os.WriteFile(path, []byte(out), 0o600)).To(Succeed())
		return path
	}

	BeforeAll(func(ctx SpecContext) {
		dir = GinkgoT().TempDir()
		namespace := filepath.Join(dir, "namespace.yaml")
		Expect(os.WriteFile(namespace, []byte("{apiVersion: v1, kind: Namespace, metadata: {name: "+install.Namespace+"}}"), 0o600)).To(Succeed())
		kubectl(ctx, "apply", "--server-side", "--filename="+namespace)
		kubectl(ctx, "apply", "--server-side", "--force-conflicts", "--filename="+filepath.Join(site.Chart, "crds"))
	})

	It("refuses to be uninstalled by its own installation", func(ctx SpecContext) {
		kubectl(ctx, "apply", "--filename="+template(ctx, "all"))
		uninstall := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: "sluice-uninstall"}}
		Eventually(func(g Gomega) {
			g.Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(uninstall), uninstall)).To(Succeed())
			g.Expect(uninstall.Status.Conditions).To(ContainElement(HaveField("Type", Or(Equal(batchv1.JobFailed), Equal(batchv1.JobComplete)))))
		}).WithTimeout(2 * timeout).Should(Succeed())
		Expect(uninstall.Status.Succeeded).To(BeZero())
		Expect(kubectl(ctx, "logs", job)).To(And(ContainSubstring("nobody is uninstalling Sluice"), ContainSubstring("docs/install.md")))

		allReady(ctx)
		Expect(site.Client.Get(ctx, client.ObjectKey{Name: "sluice"}, &admissionregistrationv1.MutatingWebhookConfiguration{})).To(Succeed())
		Expect(site.Client.Get(ctx, client.ObjectKey{Name: "sluice"}, &admissionregistrationv1.ValidatingWebhookConfiguration{})).To(Succeed())
		kubectl(ctx, "wait", "--for=condition=Complete", "--timeout=90s", "job/sluice-startup-check")
	})

	It("is uninstalled when somebody says so", func(ctx SpecContext) {
		held := createGated(ctx, "held-by-objects", "nobody", push(ctx, "team/held-by-objects:v1", images.MiB), 1)
		Expect(held.Spec.Paused).To(BeTrue())

		kubectl(ctx, "delete", "--ignore-not-found", "configmap/sluice-not-a-hook", job)
		kubectl(ctx, "apply", "--filename="+template(ctx, "uninstall", "--show-only=templates/hooks/uninstall.yaml"))
		kubectl(ctx, "wait", "--for=condition=Complete", "--timeout=3m", job)
		kubectl(ctx, "delete", "--ignore-not-found", "--filename="+template(ctx, "all"))

		refresh(ctx, held)
		Expect(held.Spec.Paused).To(BeFalse())
		Expect(held.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
		Eventually(leftovers).WithArguments(ctx).Should(HaveEach(HavePrefix("*v1.Secret sluice-")))
	})
}
