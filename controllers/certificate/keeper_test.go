// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/controllers/certificate"
	"github.com/sluice-dev/sluice/test/apiserver"
)

var api client.Client

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

var _ = Describe("Keeper", func() {
	const service = "sluice-controller.default.svc"
	var clock *clocktesting.FakeClock

	newKeeper := func() *certificate.Keeper {
		return &certificate.Keeper{
			Client:               api,
			Secret:               client.ObjectKey{Namespace: "default", Name: "tls"},
			Dir:                  GinkgoT().TempDir(),
			Names:                []string{service},
			WebhookConfiguration: "sluice",
			Clock:                clock,
		}
	}
	secret := func(ctx context.Context) *corev1.Secret {
		GinkgoHelper()
		s := &corev1.Secret{}
		Expect(api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "tls"}, s)).To(Succeed())
		return s
	}

	BeforeEach(func() { clock = clocktesting.NewFakeClock(time.Now()) })
	AfterEach(func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(api.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tls"}}))).To(Succeed())
	})

	It("gives replicas that start at the same time one certificate, which clients with the CA accept", func(ctx SpecContext) {
		keepers := []*certificate.Keeper{newKeeper(), newKeeper(), newKeeper()}
		var group errgroup.Group
		for _, keeper := range keepers {
			group.Go(func() error { return keeper.Ensure(ctx) })
		}
		Expect(group.Wait()).To(Succeed())

		roots := x509.NewCertPool()
		Expect(roots.AppendCertsFromPEM(secret(ctx).Data["ca.crt"])).To(BeTrue())
		for _, keeper := range keepers {
			pair, err := tls.LoadX509KeyPair(filepath.Join(keeper.Dir, "tls.crt"), filepath.Join(keeper.Dir, "tls.key"))
			Expect(err).NotTo(HaveOccurred())
			Expect(pair.Certificate[0]).To(Equal(certificateOf(keepers[0]).Certificate[0]))
			_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: service})
			Expect(err).NotTo(HaveOccurred())
		}
	})

	It("leaves the CA's key in the Secret alone", func(ctx SpecContext) {
		keeper := newKeeper()
		Expect(keeper.Ensure(ctx)).To(Succeed())
		files, err := filepath.Glob(filepath.Join(keeper.Dir, "*"))
		Expect(err).NotTo(HaveOccurred())
		Expect(files).To(ConsistOf(HaveSuffix("/tls.crt"), HaveSuffix("/tls.key")))
		info, err := os.Stat(filepath.Join(keeper.Dir, "tls.key"))
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
	})

	It("renews the certificate before it ends, without being told", func(ctx SpecContext) {
		keeper := newKeeper()
		running, stop := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- keeper.Start(running) }()
		Eventually(clock.HasWaiters).Should(BeTrue())
		served := func() ([]byte, error) { return os.ReadFile(filepath.Join(keeper.Dir, "tls.crt")) }
		Eventually(served).ShouldNot(BeEmpty())
		first, err := served()
		Expect(err).NotTo(HaveOccurred())

		clock.Step(61 * 24 * time.Hour)

		Eventually(served).ShouldNot(Equal(first))
		stop()
		Expect(<-done).To(Succeed())
	})

	It("puts the CA into the webhook configurations, and puts it back when somebody removes it", func(ctx SpecContext) {
		config := admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: "default", Name: "s"}}
		meta := metav1.ObjectMeta{Name: "sluice"}
		mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: "a.example.org", ClientConfig: config, SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}},
		}}
		validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionregistrationv1.ValidatingWebhook{
			{Name: "b.example.org", ClientConfig: config, SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}},
			{Name: "c.example.org", ClientConfig: config, SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}},
		}}
		for _, object := range []client.Object{mutating, validating} {
			Expect(api.Create(ctx, object)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) { Expect(api.Delete(ctx, object)).To(Succeed()) })
		}
		keeper := newKeeper()
		Expect(keeper.Ensure(ctx)).To(Succeed())
		bundles := func() [][]byte {
			GinkgoHelper()
			Expect(api.Get(ctx, client.ObjectKeyFromObject(mutating), mutating)).To(Succeed())
			Expect(api.Get(ctx, client.ObjectKeyFromObject(validating), validating)).To(Succeed())
			return [][]byte{mutating.Webhooks[0].ClientConfig.CABundle, validating.Webhooks[0].ClientConfig.CABundle, validating.Webhooks[1].ClientConfig.CABundle}
		}
		ca := secret(ctx).Data["ca.crt"]
		Expect(bundles()).To(HaveEach(ca))

		validating.Webhooks[1].ClientConfig.CABundle = nil
		Expect(api.Update(ctx, validating)).To(Succeed())
		Expect(keeper.Ensure(ctx)).To(Succeed())
		Expect(bundles()).To(HaveEach(ca))

		before := mutating.ResourceVersion
		Expect(keeper.Ensure(ctx)).To(Succeed())
		Expect(bundles()).To(HaveEach(ca))
		Expect(mutating.ResourceVersion).To(Equal(before), "what is right is not written again")
	})
})

func certificateOf(keeper *certificate.Keeper) tls.Certificate {
	GinkgoHelper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(keeper.Dir, "tls.crt"), filepath.Join(keeper.Dir, "tls.key"))
	Expect(err).NotTo(HaveOccurred())
	return pair
}
