// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// recordVariable has the specs write what they would compare with.
const recordVariable = "SLUICE_RECORD"

var _ = Describe("What GitOps tools are shown", func() {
	// test/gitops asks the tools' own libraries about these files, in a module of its
	// own. Here they are kept true.
	shown := filepath.Join("..", "gitops", "testdata")

	DescribeTable("is as recorded",
		func(ctx SpecContext, name string, arrange func(SpecContext) tenant) {
			t := arrange(ctx)
			file := filepath.Join(shown, name+".yaml")
			if os.Getenv(recordVariable) != "" {
				Eventually(func() bool { d := t.observed(ctx); return d.Status.ObservedGeneration == d.Generation }).Should(BeTrue())
				Expect(os.WriteFile(file, picture(t.observed(ctx)), 0o644)).To(Succeed())
			}
			want, err := os.ReadFile(file)
			Expect(err).NotTo(HaveOccurred())
			Eventually(func() string { return string(picture(t.deployment(ctx))) }).Should(MatchYAML(want))
		},
		Entry("of one that runs", "running", func(ctx SpecContext) tenant {
			t := runningTenant(ctx)
			t.serve(ctx)
			return t
		}),
		Entry("of one held at its creation", "held-at-creation", func(ctx SpecContext) tenant {
			t := newTenant(ctx)
			t.apply(ctx, "a")
			t.expectHeld(ctx)
			return t
		}),
		Entry("of one held at new images", "held", func(ctx SpecContext) tenant {
			t := runningTenant(ctx)
			t.serve(ctx)
			t.setImage(ctx, "b")
			t.expectHeld(ctx, "a")
			return t
		}),
		Entry("of one just released", "released", func(ctx SpecContext) tenant {
			t := runningTenant(ctx)
			t.serve(ctx)
			t.setImage(ctx, "b")
			t.expectHeld(ctx, "a")
			t.prefetch(ctx, ready, "b")
			t.expectRolling(ctx, "a", "b")
			return t
		}),
	)
})

// serve makes the kubelet's part of Pods that are Ready.
func (t tenant) serve(ctx context.Context) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		var pods corev1.PodList
		g.Expect(api.List(ctx, &pods, client.InNamespace(t.namespace))).To(Succeed())
		for i := range pods.Items {
			pods.Items[i].Status.Phase = corev1.PodRunning
			pods.Items[i].Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			g.Expect(api.Status().Update(ctx, &pods.Items[i])).To(Succeed())
		}
		g.Expect(t.deployment(ctx).Status.AvailableReplicas).To(BeEquivalentTo(1))
	}).Should(Succeed())
}

// picture is a Deployment without what differs from run to run.
func picture(d *appsv1.Deployment) []byte {
	GinkgoHelper()
	p := &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: d.Name, Generation: d.Generation, Labels: d.Labels,
			Annotations: map[string]string{v1alpha1.PrefetchAnnotation: d.Annotations[v1alpha1.PrefetchAnnotation]}},
		Spec:   d.Spec,
		Status: d.Status,
	}
	slices.SortFunc(p.Status.Conditions, func(a, b appsv1.DeploymentCondition) int { return strings.Compare(string(a.Type), string(b.Type)) })
	for i := range p.Status.Conditions {
		condition := &p.Status.Conditions[i]
		condition.Message, condition.LastTransitionTime, condition.LastUpdateTime = "", metav1.Time{}, metav1.Time{}
	}
	content, err := yaml.Marshal(p)
	Expect(err).NotTo(HaveOccurred())
	return content
}
