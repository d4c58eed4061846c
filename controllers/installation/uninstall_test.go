// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation_test

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/internal/hold"
)

var _ = Describe("Uninstaller", func() {
	var uninstaller *installation.Uninstaller

	BeforeEach(func() {
		uninstaller = &installation.Uninstaller{
			Client:      api,
			Controller:  client.ObjectKey{Namespace: "default", Name: "sluice-controller"},
			QuietPeriod: 200 * time.Millisecond,
			Interval:    10 * time.Millisecond,
		}
	})

	DescribeTable("releases held Deployments",
		func(ctx SpecContext, change func(*appsv1.Deployment)) {
			held := deployment("held", true)
			markHeld(held)
			hash, before := held.Labels[v1alpha1.HoldLabel], "fedcba9876543210"
			metav1.SetMetaDataAnnotation(&held.ObjectMeta, v1alpha1.ReleasedAnnotation, before)
			change(held)
			create(ctx, held)

			Expect(uninstaller.Run(ctx)).To(Succeed())

			refresh(ctx, held)
			Expect(held.Spec.Paused).To(BeFalse())
			Expect(held.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
			Expect(held.Annotations).NotTo(HaveKey(v1alpha1.HeldAtAnnotation))
			Expect(held.Annotations).To(HaveKeyWithValue(v1alpha1.ReleasedAnnotation, hash+","+before), "a later rollback is not held either")
		},
		Entry("as the gate left them", func(*appsv1.Deployment) {}),
		Entry("that lost their label", func(d *appsv1.Deployment) { delete(d.Labels, v1alpha1.HoldLabel) }),
		Entry("whose label was emptied", func(d *appsv1.Deployment) { d.Labels[v1alpha1.HoldLabel] = "" }),
		Entry("that a program resumed", func(d *appsv1.Deployment) { d.Spec.Paused = false }),
	)

	DescribeTable("leaves a Deployment paused that its owner paused, and takes Sluice's marks off it",
		func(ctx SpecContext, mark func(*appsv1.Deployment)) {
			theirs := deployment("theirs", true)
			mark(theirs)
			create(ctx, theirs)

			Expect(uninstaller.Run(ctx)).To(Succeed())

			refresh(ctx, theirs)
			Expect(theirs.Spec.Paused).To(BeTrue())
			Expect(theirs.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
			Expect(theirs.Annotations).NotTo(HaveKey(v1alpha1.HeldAtAnnotation))
			Expect(theirs.Annotations).NotTo(HaveKey(v1alpha1.ReleasedAnnotation))
		},
		Entry("without any mark", func(*appsv1.Deployment) {}),
		Entry("with an empty label alone", func(d *appsv1.Deployment) { metav1.SetMetaDataLabel(&d.ObjectMeta, v1alpha1.HoldLabel, "") }),
		Entry("beside a manifest that opts out and pauses", func(d *appsv1.Deployment) {
			markHeld(d)
			d.Annotations[v1alpha1.PrefetchAnnotation], d.Annotations[v1alpha1.GateAnnotation] = "app", v1alpha1.GateSkip
			d.Annotations[corev1.LastAppliedConfigAnnotation] = `{"spec":{"paused":true}}`
		}),
	)

	It("deletes Sluice's webhooks and nobody else's", func(ctx SpecContext) {
		mutating, others := mutatingWebhooks("sluice"), mutatingWebhooks("another")
		validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "sluice"}}
		create(ctx, mutating, others, validating)

		Expect(uninstaller.Run(ctx)).To(Succeed())

		Expect(gone(ctx, mutating)).To(BeTrue())
		Expect(gone(ctx, validating)).To(BeTrue())
		Expect(gone(ctx, others)).To(BeFalse())
	})

	It("stops the controllers, and deletes their Lease, their CA and every NodeImageSet", func(ctx SpecContext) {
		controller := deployment("sluice-controller", false)
		set := nodeImageSet("node-a")
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sluice-controller"}}
		ca := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: installation.CAConfigMap}}
		create(ctx, controller, set, lease, ca)

		Expect(uninstaller.Run(ctx)).To(Succeed())

		refresh(ctx, controller)
		Expect(controller.Spec.Replicas).To(HaveValue(BeZero()))
		Expect(gone(ctx, set)).To(BeTrue())
		Expect(gone(ctx, lease)).To(BeTrue())
		Expect(gone(ctx, ca)).To(BeTrue())
	})

	It("also undoes what is done while it runs", func(ctx SpecContext) {
		// As a controller would that has not ended, and an API server that still calls the webhook.
		first, last := nodeImageSet("node-a"), nodeImageSet("node-b")
		late := deployment("late", false)
		create(ctx, first, late)
		stream, err := api.Watch(ctx, &v1alpha1.NodeImageSetList{})
		Expect(err).NotTo(HaveOccurred())
		defer stream.Stop()
		go func() {
			defer GinkgoRecover()
			for event := range stream.ResultChan() {
				if event.Type == watch.Deleted && event.Object.(*v1alpha1.NodeImageSet).Name == first.Name {
					markHeld(late)
					late.Spec.Paused = true
					Expect(api.Update(ctx, late)).To(Succeed())
					Expect(api.Create(ctx, last)).To(Succeed())
					return
				}
			}
		}()
		DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(api.Delete(ctx, last))).To(Succeed()) })

		Expect(uninstaller.Run(ctx)).To(Succeed())

		refresh(ctx, late)
		Expect(late.Spec.Paused).To(BeFalse())
		Expect(gone(ctx, last)).To(BeTrue())
	})

	It("succeeds where nothing is left to undo", func(ctx SpecContext) {
		Expect(uninstaller.Run(ctx)).To(Succeed())
	})

	It("fails with the reason when its time is over", func(ctx SpecContext) {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		Expect(uninstaller.Run(short)).To(MatchError(context.DeadlineExceeded))
	})
})

func deployment(name string, paused bool) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](2),
			Paused:   paused,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:v1"}}},
			},
		},
	}
}

func markHeld(d *appsv1.Deployment) {
	metav1.SetMetaDataLabel(&d.ObjectMeta, v1alpha1.HoldLabel, hold.ImagesOf(&d.Spec.Template.Spec).Hash())
	metav1.SetMetaDataAnnotation(&d.ObjectMeta, v1alpha1.HeldAtAnnotation, "2026-01-01T00:00:00Z")
}

func nodeImageSet(node string) *v1alpha1.NodeImageSet {
	return &v1alpha1.NodeImageSet{
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec:       v1alpha1.NodeImageSetSpec{NodeName: node},
	}
}

func mutatingWebhooks(name string) *admissionregistrationv1.MutatingWebhookConfiguration {
	return &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// create creates the objects, and deletes them at the end of the spec.
func create(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, object := range objects {
		Expect(api.Create(ctx, object)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(api.Delete(ctx, object))).To(Succeed()) })
	}
}

func refresh(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, object := range objects {
		Expect(api.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
	}
}

func gone(ctx context.Context, object client.Object) bool {
	return apierrors.IsNotFound(api.Get(ctx, client.ObjectKeyFromObject(object), object))
}
