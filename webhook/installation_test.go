// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook_test

import (
	"context"
	"errors"
	"net"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/test/admission"
)

var _ = Describe("AwaitWebhooks", Serial, func() {
	var ca []byte

	install := func(ctx context.Context, ca []byte) {
		GinkgoHelper()
		Expect(admission.Install(ctx, api, server.Root, "https://"+address, ca)).To(Succeed())
	}
	BeforeEach(func(ctx SpecContext) {
		ca = caBundle(ctx)
		DeferCleanup(func(ctx SpecContext) {
			install(ctx, ca)
			untilAsked(ctx)
		})
	})
	// await begins to wait. What probes are answered goes to answers, if somebody listens.
	await := func(ctx context.Context) (ended, answers chan error) {
		ended, answers = make(chan error, 1), make(chan error, 1)
		ctx, cancel := context.WithCancel(ctx)
		DeferCleanup(cancel)
		listening := intercepted(func(ctx context.Context, c client.WithWatch, object client.Object, opts ...client.CreateOption) error {
			err := c.Create(ctx, object, opts...)
			select {
			case answers <- err:
			default:
			}
			return err
		})
		go func() { ended <- installation.AwaitWebhooks(ctx, listening, "default", time.Millisecond) }()
		return ended, answers
	}

	It("waits until the API server trusts the webhooks", func(ctx SpecContext) {
		other, err := admission.NewCertificate(net.IPv4(127, 0, 0, 1))
		Expect(err).NotTo(HaveOccurred())
		install(ctx, other.Text)
		ended, answers := await(ctx)
		Eventually(answers).Should(Receive(MatchError(ContainSubstring("failed to verify certificate"))))
		Eventually(answers).Should(Receive(MatchError(ContainSubstring("failed to verify certificate"))), "it asks again")
		Expect(ended).NotTo(Receive())
		install(ctx, ca)
		Eventually(ended).Should(Receive(Succeed()))
	})

	DescribeTable("waits for each configuration", func(ctx SpecContext, configuration client.Object) {
		configuration.SetName(installation.WebhookConfiguration)
		Expect(api.Delete(ctx, configuration)).To(Succeed())
		ended, answers := await(ctx)
		Eventually(answers).Should(Receive(Succeed()))
		Eventually(answers).Should(Receive(Succeed()), "it asks again")
		Expect(ended).NotTo(Receive())
		install(ctx, ca)
		Eventually(ended).Should(Receive(Succeed()))
	},
		Entry("that of the gate", &admissionregistrationv1.MutatingWebhookConfiguration{}),
		Entry("that of policies", &admissionregistrationv1.ValidatingWebhookConfiguration{}),
	)

	It("says what is wrong when its time is over", func(ctx SpecContext) {
		bounded, cancel := context.WithCancel(ctx)
		asked := 0
		rejecting := intercepted(func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
			if asked++; asked == 2 {
				cancel()
			}
			return errors.New("no route to the controller")
		})
		Expect(installation.AwaitWebhooks(bounded, rejecting, "default", time.Millisecond)).
			To(MatchError(And(ContainSubstring("context canceled"), ContainSubstring("no route to the controller"))))
	})
})

type createFunc = func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error

// intercepted is an administrator's client that creates in its own way.
func intercepted(create createFunc) client.Client {
	GinkgoHelper()
	c, err := client.NewWithWatch(server.Config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	return interceptor.NewClient(c, interceptor.Funcs{Create: create})
}

// caBundle is the CA by which the API server knows the webhooks.
func caBundle(ctx context.Context) []byte {
	GinkgoHelper()
	var configuration admissionregistrationv1.MutatingWebhookConfiguration
	Expect(api.Get(ctx, client.ObjectKey{Name: installation.WebhookConfiguration}, &configuration)).To(Succeed())
	return configuration.Webhooks[0].ClientConfig.CABundle
}
