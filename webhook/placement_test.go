// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook_test

import (
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/installation"
)

var _ = Describe("What an ImagePrefetch says of nodes", func() {
	const image = "ghcr.io/org/app:v1"
	var namespace string

	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		allow(ctx, namespace, "ghcr.io/org/**")
	})

	on := func(change func(*v1alpha1.ImagePrefetchSpec)) *v1alpha1.ImagePrefetch {
		p := prefetchOf(namespace, "app", image)
		change(&p.Spec)
		return p
	}
	labels := func(key, value string) func(*v1alpha1.ImagePrefetchSpec) {
		return func(s *v1alpha1.ImagePrefetchSpec) { s.NodeSelector = map[string]string{key: value} }
	}
	tolerates := func(t corev1.Toleration) func(*v1alpha1.ImagePrefetchSpec) {
		return func(s *v1alpha1.ImagePrefetchSpec) { s.Tolerations = []corev1.Toleration{t} }
	}
	terms := func(terms ...corev1.NodeSelectorTerm) func(*v1alpha1.ImagePrefetchSpec) {
		return func(s *v1alpha1.ImagePrefetchSpec) {
			s.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}
		}
	}
	expression := func(key string, operator corev1.NodeSelectorOperator, values ...string) func(*v1alpha1.ImagePrefetchSpec) {
		return terms(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: operator, Values: values}}})
	}
	name := func(key string, operator corev1.NodeSelectorOperator, values ...string) func(*v1alpha1.ImagePrefetchSpec) {
		return terms(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: key, Operator: operator, Values: values}}})
	}

	// The API server is asked about a Pod with the same fields, so that the case is true.
	DescribeTable("is admitted as in a Pod", func(ctx SpecContext, change func(*v1alpha1.ImagePrefetchSpec), messages ...string) {
		prefetch := on(change)
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "app"},
			Spec: corev1.PodSpec{
				Containers:   []corev1.Container{{Name: "app", Image: image}},
				NodeSelector: prefetch.Spec.NodeSelector, Tolerations: prefetch.Spec.Tolerations,
				Affinity: &corev1.Affinity{NodeAffinity: prefetch.Spec.NodeAffinity},
			},
		}
		inPod, inPrefetch := api.Create(ctx, pod, client.DryRunAll), api.Create(ctx, prefetch, client.DryRunAll)
		if len(messages) == 0 {
			Expect(inPod).To(Succeed())
			Expect(inPrefetch).To(Succeed())
			return
		}
		Expect(inPod).To(Satisfy(apierrors.IsInvalid), "%v", inPod)
		Expect(inPrefetch).To(Satisfy(apierrors.IsInvalid), "%v", inPrefetch)
		for _, message := range messages {
			Expect(inPrefetch).To(MatchError(ContainSubstring(message)))
		}
	},
		Entry("a label", labels("example.com/pool", "web")),
		Entry("a label without a value", labels("pool", "")),
		Entry("a key that no label has", labels("pool!", "web"), `spec.nodeSelector[pool!]: Invalid value: "pool!": name part must consist of`),
		Entry("a key that is too long", labels(strings.Repeat("a", 64), "web"), "must be no more than 63"),
		Entry("a value that no label has", labels("pool", "a,b"), `spec.nodeSelector[pool]: Invalid value: "a,b": a valid label must be`),

		Entry("a toleration of a taint", tolerates(corev1.Toleration{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule})),
		Entry("a toleration of a taint without a value", tolerates(corev1.Toleration{Key: "gpu"})),
		Entry("a toleration of every taint", tolerates(corev1.Toleration{Operator: corev1.TolerationOpExists})),
		Entry("a toleration for a time", tolerates(corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](9)})),
		Entry("an operator in lower case", tolerates(corev1.Toleration{Key: "gpu", Operator: "exists"}),
			`spec.tolerations[0].operator: Unsupported value: "exists": supported values: "Equal", "Exists"`),
		Entry("an effect in lower case", tolerates(corev1.Toleration{Key: "gpu", Effect: "noSchedule"}),
			`spec.tolerations[0].effect: Unsupported value: "noSchedule": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`),
		Entry("no key and no operator", tolerates(corev1.Toleration{}), "spec.tolerations[0].key: Required value: write the key of a taint; to tolerate every taint, write operator Exists"),
		Entry("no key and a value", tolerates(corev1.Toleration{Operator: corev1.TolerationOpEqual, Value: "yes"}), "spec.tolerations[0].key: Required value"),
		Entry("a key that no taint has", tolerates(corev1.Toleration{Key: "gpu=yes", Operator: corev1.TolerationOpExists}), `spec.tolerations[0].key: Invalid value: "gpu=yes"`),
		Entry("a value beside Exists", tolerates(corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists, Value: "yes"}),
			`spec.tolerations[0].value: Invalid value: "yes": leave it out with operator Exists, or write operator Equal`),
		Entry("a value that no taint has", tolerates(corev1.Toleration{Key: "gpu", Value: "a b"}), `spec.tolerations[0].value: Invalid value: "a b"`),
		Entry("a time for another effect", tolerates(corev1.Toleration{Key: "gpu", TolerationSeconds: ptr.To[int64](9)}),
			`spec.tolerations[0].effect: Invalid value: "": write NoExecute, or leave tolerationSeconds out`),

		Entry("terms", expression("pool", corev1.NodeSelectorOpIn, "web", "gpu")),
		Entry("a term that compares numbers", expression("cores", corev1.NodeSelectorOpGt, "4")),
		Entry("a term that names a node", name("metadata.name", corev1.NodeSelectorOpIn, "node-1")),
		Entry("no terms", terms([]corev1.NodeSelectorTerm{}...), "spec.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: write one term at least"),
		Entry("an operator of a term in lower case", expression("pool", "in", "web"),
			`nodeSelectorTerms[0].matchExpressions[0].operator: Unsupported value: "in": supported values: "In", "NotIn", "Exists"`),
		Entry("a term without values", expression("pool", corev1.NodeSelectorOpIn), "nodeSelectorTerms[0].matchExpressions[0].values"),
		Entry("a term with a key that no label has", expression("po ol", corev1.NodeSelectorOpExists), "nodeSelectorTerms[0].matchExpressions[0].key"),
		Entry("a term with a value that no label has", expression("pool", corev1.NodeSelectorOpIn, "a b"), "nodeSelectorTerms[0].matchExpressions[0].values[0]"),
		Entry("a field that is none", name("metadata.labels", corev1.NodeSelectorOpIn, "node-1"),
			`nodeSelectorTerms[0].matchFields[0].key: Unsupported value: "metadata.labels": supported values: "metadata.name"`),
		Entry("two names in one field", name("metadata.name", corev1.NodeSelectorOpIn, "node-1", "node-2"), "nodeSelectorTerms[0].matchFields[0].values"),
	)

	It("is told to be wrong at once, with what policies deny", func(ctx SpecContext) {
		p := on(tolerates(corev1.Toleration{Key: "gpu", Operator: "exists", Effect: "noSchedule"}))
		labels("pool", "a b")(&p.Spec)
		expression("pool", "in", "web")(&p.Spec)
		p.Spec.Images = append(p.Spec.Images, "quay.io/org/app:v1")
		Expect(api.Create(ctx, p)).To(MatchError(And(
			ContainSubstring("spec.nodeSelector[pool]"), ContainSubstring("matchExpressions[0].operator"),
			ContainSubstring("spec.tolerations[0].operator"), ContainSubstring("spec.tolerations[0].effect"),
			ContainSubstring("spec.images[1]"))))
	})

	It("may stay as it was stored, field by field", func(ctx SpecContext) {
		stored := on(tolerates(corev1.Toleration{Key: "gpu", Operator: "exists"}))
		labels("pool", "a b")(&stored.Spec)
		expression("pool", "in", "web")(&stored.Spec)
		createPastTheWebhook(ctx, stored)

		By("letting through what does not concern it")
		stored.Spec.Images = append(stored.Spec.Images, "ghcr.io/org/other:v1")
		stored.Spec.FailureTolerance = nil
		Expect(api.Update(ctx, stored)).To(Succeed())

		By("rejecting each field that changes and is still not valid")
		for field, change := range map[string]func(*v1alpha1.ImagePrefetchSpec){
			"spec.tolerations[0].operator": tolerates(corev1.Toleration{Key: "cpu", Operator: "exists"}),
			"spec.nodeSelector[pool]":      labels("pool", "c d"),
			"matchExpressions[0].operator": expression("zone", "in", "web"),
		} {
			changed := stored.DeepCopy()
			change(&changed.Spec)
			Expect(api.Update(ctx, changed)).To(And(Satisfy(apierrors.IsInvalid), MatchError(ContainSubstring(field))), field)
		}

		By("letting it be mended, one field at a time")
		tolerates(corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists})(&stored.Spec)
		Expect(api.Update(ctx, stored)).To(Succeed())
	})
})

// createPastTheWebhook creates an ImagePrefetch as a version did that asked for less.
func createPastTheWebhook(ctx context.Context, p *v1alpha1.ImagePrefetch) {
	GinkgoHelper()
	var configuration admissionregistrationv1.ValidatingWebhookConfiguration
	Expect(api.Get(ctx, client.ObjectKey{Name: installation.WebhookConfiguration}, &configuration)).To(Succeed())
	open := configuration.DeepCopy()
	open.Webhooks[0].MatchConditions = append(open.Webhooks[0].MatchConditions, admissionregistrationv1.MatchCondition{Name: "never", Expression: "false"})
	Expect(api.Update(ctx, open)).To(Succeed())
	Eventually(func() error { return api.Create(ctx, p) }).Should(Succeed())
	configuration.ResourceVersion = open.ResourceVersion
	Expect(api.Update(ctx, &configuration)).To(Succeed())
	probe := prefetchOf(p.Namespace, "probe", "quay.io/org/app:v1")
	Eventually(func() error { return api.Create(ctx, probe.DeepCopy(), client.DryRunAll) }).ShouldNot(Succeed())
}
