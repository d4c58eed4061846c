// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook_test

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

var _ = Describe("Beside a webhook that rewrites images after it, the gate webhook", Serial, func() {
	const rewritten = "mirror.example.com/app:v1"
	BeforeEach(func(ctx SpecContext) { rewriteImages(ctx, rewritten) })

	It("holds what will run", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		d := gated(namespace, "app")
		Eventually(func(g Gomega) { // until the API server knows of the other webhook
			probe := d.DeepCopy()
			g.Expect(api.Create(ctx, probe, client.DryRunAll)).To(Succeed())
			g.Expect(probe.Spec.Template.Spec.Containers[0].Image).To(Equal(rewritten))
		}).Should(Succeed())
		Expect(api.Create(ctx, d)).To(Succeed())
		hash := hold.ImagesOf(&corev1.PodSpec{Containers: []corev1.Container{{Image: rewritten}}}).Hash()
		Expect(d.Labels).To(HaveKeyWithValue(v1alpha1.HoldLabel, hash))

		By("not taking its own first answer for the owner's pause")
		d.Spec.Paused = false
		d.Spec.Template.Spec.Containers[0].Image = "registry.example.com/app:v1"
		Expect(api.Update(ctx, d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeTrue())
		Expect(d.Labels).To(HaveKeyWithValue(v1alpha1.HoldLabel, hash))

		By("letting through what was let through, whatever the manifest calls it")
		Eventually(func() error { // the release of the gate controller
			d.Spec.Paused = false
			delete(d.Labels, v1alpha1.HoldLabel)
			delete(d.Annotations, v1alpha1.HeldAtAnnotation)
			d.Annotations[v1alpha1.ReleasedAnnotation] = hash
			return api.Update(ctx, d)
		}).Should(Succeed())
		d.Spec.Template.Spec.Containers[0].Image = "registry.example.com/app:v1"
		Expect(api.Update(ctx, d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeFalse())
	})

	It("goes on with its own hold where the owner resumes and changes images in one write", func(ctx SpecContext) {
		d := gated(newNamespace(ctx), "app")
		d.Spec.Paused = true
		Eventually(func(g Gomega) { // until the API server knows of the other webhook
			probe := d.DeepCopy()
			g.Expect(api.Create(ctx, probe, client.DryRunAll)).To(Succeed())
			g.Expect(probe.Spec.Template.Spec.Containers[0].Image).To(Equal(rewritten))
		}).Should(Succeed())
		Expect(api.Create(ctx, d)).To(Succeed())
		Expect(d.Labels).NotTo(HaveKey(v1alpha1.HoldLabel), "the pause is its owner's")
		d.Spec.Paused = false
		d.Spec.Template.Spec.Containers[0].Image = "registry.example.com/app:v2"
		Expect(api.Update(ctx, d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeTrue())
		hash := hold.ImagesOf(&corev1.PodSpec{Containers: []corev1.Container{{Image: rewritten}}}).Hash()
		Expect(d.Labels).To(HaveKeyWithValue(v1alpha1.HoldLabel, hash))
	})
})

// rewriteImages installs a webhook that is called after ours, by its name, and sets
// the image of each Deployment.
func rewriteImages(ctx SpecContext, image string) {
	GinkgoHelper()
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer GinkgoRecover()
		var review admissionv1.AdmissionReview
		Expect(json.NewDecoder(r.Body).Decode(&review)).To(Succeed())
		var d appsv1.Deployment
		Expect(json.Unmarshal(review.Request.Object.Raw, &d)).To(Succeed())
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if d.Spec.Template.Spec.Containers[0].Image != image {
			review.Response.Patch = []byte(`[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"` + image + `"}]`)
			review.Response.PatchType = ptr.To(admissionv1.PatchTypeJSONPatch)
		}
		w.Header().Set("Content-Type", "application/json")
		Expect(json.NewEncoder(w).Encode(review)).To(Succeed())
	}))
	DeferCleanup(other.Close)
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "zz-rewriter"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "rewriter.example.com", AdmissionReviewVersions: []string{"v1"},
			SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone),
			ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &other.URL,
				CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw})},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
			}},
		}},
	}
	Expect(api.Create(ctx, configuration)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		Expect(api.Delete(ctx, configuration)).To(Succeed())
		Eventually(func(g Gomega) { // until the API server has forgotten it
			probe := gated("default", "probe")
			g.Expect(api.Create(ctx, probe, client.DryRunAll)).To(Succeed())
			g.Expect(probe.Spec.Template.Spec.Containers[0].Image).NotTo(Equal(image))
		}).Should(Succeed())
	})
}
