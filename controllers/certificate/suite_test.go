// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate_test

import (
	"context"
	"crypto/x509"
	"net"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/controllers/certificate"
	"github.com/sluice-dev/sluice/test/admission"
	"github.com/sluice-dev/sluice/test/apiserver"
)

const service = "sluice-controller.default.svc"

var (
	api   client.Client
	clock *clocktesting.FakeClock // what newKeeper's have
)

func TestKeeper(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(20 * time.Second)
	EnforceDefaultTimeoutsWhenUsingContexts()
	RunSpecs(t, "Certificate")
}

var _ = BeforeSuite(func() {
	server, err := apiserver.Start()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(server.Stop()).To(Succeed()) })
	api, err = client.New(server.Config, client.Options{})
	Expect(err).NotTo(HaveOccurred())
})

var _ = BeforeEach(func() { clock = clocktesting.NewFakeClock(time.Now()) })

var _ = AfterEach(func(ctx SpecContext) {
	for _, object := range []client.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tls"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ca"}},
	} {
		Expect(client.IgnoreNotFound(api.Delete(ctx, object))).To(Succeed())
	}
})

// newKeeper is a replica of a SelfManaged installation.
func newKeeper() *certificate.Keeper {
	return &certificate.Keeper{
		Client:               api,
		Secret:               client.ObjectKey{Namespace: "default", Name: "tls"},
		CA:                   client.ObjectKey{Namespace: "default", Name: "ca"},
		SelfManaged:          true,
		Names:                []string{service},
		WebhookConfiguration: "sluice",
		Clock:                clock,
	}
}

// newReader is a replica that takes what another has put into the Secret.
func newReader() *certificate.Keeper {
	keeper := newKeeper()
	keeper.SelfManaged = false
	return keeper
}

func secret(ctx context.Context) *corev1.Secret {
	GinkgoHelper()
	s := &corev1.Secret{}
	Expect(api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "tls"}, s)).To(Succeed())
	return s
}

// issue has the Secret contain a certificate of a new authority, as cert-manager would, and returns that.
func issue(ctx context.Context) (ca []byte) {
	GinkgoHelper()
	issued, err := admission.NewCertificate(net.IPv4(127, 0, 0, 1))
	Expect(err).NotTo(HaveOccurred())
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tls"},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{"tls.crt": issued.Text, "tls.key": issued.Key, "ca.crt": issued.Text},
	}
	Expect(client.IgnoreAlreadyExists(api.Create(ctx, s.DeepCopy()))).To(Succeed())
	Expect(api.Update(ctx, s)).To(Succeed())
	return issued.Text
}

func published(ctx context.Context) *corev1.ConfigMap {
	GinkgoHelper()
	configMap := &corev1.ConfigMap{}
	Expect(api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "ca"}, configMap)).To(Succeed())
	return configMap
}

// trusted is what clients trust who know the texts.
func trusted(texts ...string) *x509.CertPool {
	GinkgoHelper()
	roots := x509.NewCertPool()
	for _, text := range texts {
		Expect(roots.AppendCertsFromPEM([]byte(text))).To(BeTrue())
	}
	return roots
}

// servedBy is the certificate that a replica serves with; nil if it has none.
func servedBy(keeper *certificate.Keeper) *x509.Certificate {
	served, err := keeper.GetCertificate(nil)
	if err != nil {
		return nil
	}
	return served.Leaf
}

func pass(ctx context.Context, keeper *certificate.Keeper) (settled bool) {
	GinkgoHelper()
	settled, err := keeper.Pass(ctx)
	Expect(err).NotTo(HaveOccurred())
	return settled
}

// createWebhooks creates two configurations, and returns what reads the CAs in them.
func createWebhooks(ctx context.Context) (mutating *admissionregistrationv1.MutatingWebhookConfiguration,
	validating *admissionregistrationv1.ValidatingWebhookConfiguration, bundles func() [][]byte,
) {
	GinkgoHelper()
	config := admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: "default", Name: "s"}}
	meta := metav1.ObjectMeta{Name: "sluice"}
	mutating = &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionregistrationv1.MutatingWebhook{
		{Name: "a.example.org", ClientConfig: config, SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}},
	}}
	validating = &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionregistrationv1.ValidatingWebhook{
		{Name: "b.example.org", ClientConfig: config, SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}},
		{Name: "c.example.org", ClientConfig: config, SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}},
	}}
	for _, object := range []client.Object{mutating, validating} {
		Expect(api.Create(ctx, object)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(api.Delete(ctx, object)).To(Succeed()) })
	}
	return mutating, validating, func() [][]byte {
		GinkgoHelper()
		Expect(api.Get(ctx, client.ObjectKeyFromObject(mutating), mutating)).To(Succeed())
		Expect(api.Get(ctx, client.ObjectKeyFromObject(validating), validating)).To(Succeed())
		return [][]byte{mutating.Webhooks[0].ClientConfig.CABundle, validating.Webhooks[0].ClientConfig.CABundle, validating.Webhooks[1].ClientConfig.CABundle}
	}
}
