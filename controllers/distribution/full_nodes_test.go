// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"encoding/json"
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var _ = Describe("A node that more images are wanted on than its NodeImageSet has room for", func() {
	// fail writes the largest status that an agent could for the images of the spec.
	fail := func(ctx SpecContext, set *v1alpha1.NodeImageSet) error {
		status := v1alpha1.NodeImageSetStatus{ObservedGeneration: set.Generation}
		now := metav1.Now()
		for _, image := range set.Spec.ImageSet {
			status.Images = append(status.Images, v1alpha1.NodeImageStatus{
				Name: image.Name, State: v1alpha1.ImageFailed, Digest: "sha512:" + strings.Repeat("a", 128), Request: image.Request,
				SizeBytes: 1 << 40, PulledBytes: 1 << 40, Source: v1alpha1.SourceUpstream, Attempts: 1 << 20,
				Reason: v1alpha1.ReasonCredentialsUnavailable, Message: strings.Repeat("m", 1024), StartedAt: &now, FinishedAt: &now,
			})
		}
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
		Expect(err).NotTo(HaveOccurred())
		apply := &unstructured.Unstructured{Object: map[string]any{"status": content}}
		apply.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("NodeImageSet"))
		apply.SetName(set.Name)
		return api.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(apply), client.FieldOwner("sluice-agent"), client.ForceOwnership)
	}

	DescribeTable("gets the images of the oldest ImagePrefetches, and the others say why not theirs",
		func(ctx SpecContext, length, secrets int) {
			nodes := runAgents()
			nodes.change(func(a *agents) { a.silent["node-1"] = true })
			createNodes(ctx, 1)
			start(func(s *settings) { s.secrets = true })
			var all []*v1alpha1.ImagePrefetch
			for p := range 8 {
				all = append(all, createPrefetch(ctx, fmt.Sprintf("p%d", p), func(prefetch *v1alpha1.ImagePrefetch) {
					prefetch.Spec.Images = nil
					for i := range 100 {
						name := fmt.Sprintf("registry.sluice.test/%d/%02d/", p, i)
						prefetch.Spec.Images = append(prefetch.Spec.Images, v1alpha1.ImageReference(name+strings.Repeat("a", length-len(name)-len(":v1"))+":v1"))
					}
					for s := range secrets {
						prefetch.Spec.ImagePullSecrets = append(prefetch.Spec.ImagePullSecrets,
							v1alpha1.SecretReference{Name: fmt.Sprintf("s%02d", s) + strings.Repeat("a", 200)})
					}
				}))
			}
			Eventually(statusOf(ctx, all[7])).Should(And(notReady(v1alpha1.ReasonNodesFailed),
				messageOf(v1alpha1.ConditionReady, ContainSubstring("1 failed (TooManyImages)")),
				HaveField("Failures", ContainElement(And(HaveField("Node", "node-1"), HaveField("Reason", v1alpha1.ReasonTooManyImages))))))
			Eventually(statusOf(ctx, all[0])).Should(HaveField("Failures", BeEmpty()))

			var set v1alpha1.NodeImageSet
			Eventually(func(g Gomega) {
				g.Expect(api.Get(ctx, keyOf("node-1"), &set)).To(Succeed())
				g.Expect(fail(ctx, &set)).To(Succeed())
				g.Expect(api.Get(ctx, keyOf("node-1"), &set)).To(Succeed())
				g.Expect(set.Status.ObservedGeneration).To(Equal(set.Generation))
			}).Should(Succeed())
			size, err := json.Marshal(set)
			Expect(err).NotTo(HaveOccurred())
			AddReportEntry("size", fmt.Sprintf("%d images are %d bytes, %d each", len(set.Spec.ImageSet), len(size), len(size)/len(set.Spec.ImageSet)))
			Expect(len(size)).To(BeNumerically("<", 1280<<10), "the plan estimates entries too small")
			Expect(len(size)).To(BeNumerically(">", 800<<10), "the plan estimates entries too large")
		},
		Entry("with names of usual length", 60, 0),
		Entry("with long names", 250, 0),
		Entry("with as many secrets as the schema allows", 60, 16),
	)
})
