// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate_test

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/controllers/certificate"
)

var _ = Describe("Keeper", func() {
	It("gives replicas that start at the same time one certificate, which clients with the CA accept", func(ctx SpecContext) {
		keepers := []*certificate.Keeper{newKeeper(), newKeeper(), newKeeper()}
		var group errgroup.Group
		for _, keeper := range keepers {
			group.Go(func() error { _, err := keeper.Pass(ctx); return err })
		}
		Expect(group.Wait()).To(Succeed())

		roots := trusted(published(ctx).Data["ca.crt"])
		for _, keeper := range keepers {
			Expect(servedBy(keeper)).To(Equal(servedBy(keepers[0])))
			_, err := servedBy(keeper).Verify(x509.VerifyOptions{Roots: roots, DNSName: service})
			Expect(err).NotTo(HaveOccurred())
		}
	})

	It("renews the certificate before it ends, without being told", func(ctx SpecContext) {
		keeper := newKeeper()
		running, stop := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- keeper.Start(running) }()
		Eventually(clock.HasWaiters).Should(BeTrue())
		first := servedBy(keeper)
		Expect(first).NotTo(BeNil())

		clock.Step(61 * 24 * time.Hour)

		Eventually(func() *x509.Certificate { return servedBy(keeper) }).ShouldNot(Equal(first))
		stop()
		Expect(<-done).To(Succeed())
	})

	It("is not ready before cert-manager has issued a certificate, and is soon after", func(ctx SpecContext) {
		keeper := newReader()
		running, stop := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- keeper.Start(running) }()
		Eventually(clock.HasWaiters).Should(BeTrue())
		Expect(keeper.Ready(nil)).To(MatchError("there is no serving certificate yet"))

		issue(ctx)
		clock.Step(certificate.Settle)

		Eventually(func() error { return keeper.Ready(nil) }).Should(Succeed())
		stop()
		Expect(<-done).To(Succeed())
	})

	It("goes on with the certificate that it has while there is none in the Secret", func(ctx SpecContext) {
		issue(ctx)
		keeper := newReader()
		Expect(pass(ctx, keeper)).To(BeTrue())
		served := servedBy(keeper)
		Expect(api.Delete(ctx, secret(ctx))).To(Succeed())

		_, err := keeper.Pass(ctx)

		Expect(err).To(MatchError(apierrors.IsNotFound, "is not found"))
		Expect(servedBy(keeper)).To(Equal(served))
	})

	It("says what is wrong with the Secret of an issuer that gives no CA", func(ctx SpecContext) {
		issue(ctx)
		incomplete := secret(ctx)
		delete(incomplete.Data, "ca.crt")
		Expect(api.Update(ctx, incomplete)).To(Succeed())

		_, err := newReader().Pass(ctx)

		Expect(err).To(MatchError("take the certificate from secret default/tls: there is no certificate in ca.crt: the issuer must put its CA there"))
	})

	It("leaves the Secret and the webhook configurations to cert-manager", func(ctx SpecContext) {
		_, _, bundles := createWebhooks(ctx)
		keeper := newReader()
		_, err := keeper.Pass(ctx)
		Expect(err).To(MatchError(apierrors.IsNotFound, "is not found"))
		issue(ctx)
		before := secret(ctx)
		clock.Step(10 * 365 * 24 * time.Hour)
		Expect(pass(ctx, keeper)).To(BeTrue())
		Expect(secret(ctx)).To(Equal(before))
		Expect(bundles()).To(HaveEach(BeEmpty()))
	})

	It("publishes the CA, and nothing else", func(ctx SpecContext) {
		ca := string(issue(ctx))
		stored := secret(ctx)
		stored.Data["ca.crt"] = append(stored.Data["ca.crt"], stored.Data["tls.key"]...)
		Expect(api.Update(ctx, stored)).To(Succeed())
		pass(ctx, newReader())
		Expect(published(ctx).Data).To(Equal(map[string]string{"ca.crt": ca}))
		Expect(published(ctx).BinaryData).To(BeEmpty())
	})

	It("puts back what somebody takes out of the ConfigMap, and writes nothing that is right", func(ctx SpecContext) {
		ca := string(issue(ctx))
		keeper := newReader()
		pass(ctx, keeper)
		before := published(ctx)
		pass(ctx, keeper)
		Expect(published(ctx).ResourceVersion).To(Equal(before.ResourceVersion))

		edited := published(ctx)
		edited.Data = map[string]string{"ca.crt": "nonsense", "other": "text"}
		Expect(api.Update(ctx, edited)).To(Succeed())
		pass(ctx, keeper)
		Expect(published(ctx).Data).To(Equal(map[string]string{"ca.crt": ca}))

		Expect(api.Delete(ctx, published(ctx))).To(Succeed())
		pass(ctx, keeper)
		Expect(published(ctx).Data).To(Equal(map[string]string{"ca.crt": ca}))
	})

	It("puts the CA into the webhook configurations, and puts it back when somebody removes it", func(ctx SpecContext) {
		mutating, validating, bundles := createWebhooks(ctx)
		keeper := newKeeper()
		pass(ctx, keeper)
		ca := secret(ctx).Data["ca.crt"]
		Expect(bundles()).To(HaveEach(ca))

		validating.Webhooks[1].ClientConfig.CABundle = nil
		Expect(api.Update(ctx, validating)).To(Succeed())
		pass(ctx, keeper)
		Expect(bundles()).To(HaveEach(ca))

		before := mutating.ResourceVersion
		pass(ctx, keeper)
		Expect(bundles()).To(HaveEach(ca))
		Expect(mutating.ResourceVersion).To(Equal(before), "what is right is not written again")
	})
})

// Two replicas learn of a new CA one after the other. At each moment a client that has read the
// ConfigMap must trust whichever replica it meets, and one that has read it just before, too.
var _ = Describe("A CA with another key", func() {
	var replicas []*certificate.Keeper

	// expectTrust expects clients who know the texts to accept all replicas.
	expectTrust := func(texts ...string) {
		GinkgoHelper()
		for _, replica := range replicas {
			_, err := servedBy(replica).Verify(x509.VerifyOptions{Roots: trusted(texts...)})
			Expect(err).NotTo(HaveOccurred())
		}
	}
	text := func(ctx context.Context) string { return published(ctx).Data["ca.crt"] }

	BeforeEach(func(ctx SpecContext) {
		replicas = []*certificate.Keeper{newReader(), newReader()}
		issue(ctx)
		for _, replica := range replicas {
			Expect(pass(ctx, replica)).To(BeTrue())
		}
		clock.Step(certificate.ForgetAfter)
	})

	It("is trusted before anybody serves with it, and the old one until everybody does", func(ctx SpecContext) {
		before := text(ctx)
		first, second := replicas[0], replicas[1]
		issue(ctx)

		Expect(pass(ctx, first)).To(BeFalse(), "it is not served with yet")
		expectTrust(before)
		expectTrust(text(ctx))

		clock.Step(certificate.Settle)
		Expect(pass(ctx, first)).To(BeTrue())
		Expect(servedBy(first)).NotTo(Equal(servedBy(second)))
		expectTrust(text(ctx))

		clock.Step(certificate.Interval)
		Expect(pass(ctx, second)).To(BeFalse())
		expectTrust(text(ctx))
		clock.Step(certificate.Settle)
		Expect(pass(ctx, second)).To(BeTrue())
		Expect(servedBy(first)).To(Equal(servedBy(second)))
		expectTrust(text(ctx))
	})

	It("is the only one that is trusted ten minutes later", func(ctx SpecContext) {
		before := text(ctx)
		after := string(issue(ctx))
		pass(ctx, replicas[0])
		Expect(text(ctx)).To(Equal(before + after))

		clock.Step(certificate.ForgetAfter - time.Second)
		pass(ctx, replicas[0])
		pass(ctx, replicas[1])
		Expect(text(ctx)).To(Equal(before + after))
		clock.Step(time.Second)
		pass(ctx, replicas[0])
		Expect(text(ctx)).To(Equal(after))
		pass(ctx, replicas[1])
		Expect(text(ctx)).To(Equal(after))
	})

	It("is in the webhook configurations together with the old one, where the controller keeps those", func(ctx SpecContext) {
		for _, replica := range replicas {
			replica.SelfManaged = true
		}
		_, _, bundles := createWebhooks(ctx)
		before := text(ctx)
		Expect(api.Delete(ctx, secret(ctx))).To(Succeed())
		pass(ctx, replicas[0])
		Expect(bundles()).To(HaveEach([]byte(before + string(secret(ctx).Data["ca.crt"]))))
		expectTrust(string(bundles()[0]))
	})

	It("is not served with where it could not be published", func(ctx SpecContext) {
		served := servedBy(replicas[0])
		replicas[0].Client = readOnly{api}
		issue(ctx)
		for range 2 {
			_, err := replicas[0].Pass(ctx)
			Expect(err).To(MatchError("publish the CA in ConfigMap default/ca: no rights"))
			clock.Step(certificate.Settle)
		}
		Expect(servedBy(replicas[0])).To(Equal(served))
	})
})

var errNoRights = errors.New("no rights")

// readOnly is a client without the right to update.
type readOnly struct{ client.Client }

func (readOnly) Update(context.Context, client.Object, ...client.UpdateOption) error {
	return errNoRights
}
