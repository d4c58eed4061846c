// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// probeName is the name of the probes, which are never stored.
const probeName = "sluice-probe"

// errProbeAccepted means that a probe was accepted which the webhooks must reject.
var errProbeAccepted = errors.New("the API server does not ask the webhooks yet, or gets no answer")

// AwaitWebhooks returns when the API server calls Sluice's webhooks and gets their answers: it knows
// their configuration, trusts their certificate and reaches a controller. That takes a moment after
// the controllers are Ready. The proof is that it rejects probes, which are dry runs of objects that
// only the webhooks reject. The Deployment among them is in namespace.
func AwaitWebhooks(ctx context.Context, c client.Client, namespace string, interval time.Duration) error {
	last := errProbeAccepted
	err := wait.PollUntilContextCancel(ctx, interval, true, func(ctx context.Context) (bool, error) {
		for _, probe := range []client.Object{invalidDeployment(namespace), invalidPolicy()} {
			if err := tryProbe(ctx, c, probe); err != nil {
				if ctx.Err() == nil && err.Error() != last.Error() {
					logr.FromContextOrDiscard(ctx).Info("The webhooks do not answer yet", "reason", err.Error())
					last = err
				}
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

// tryProbe fails unless the probe is rejected as invalid.
func tryProbe(ctx context.Context, c client.Client, probe client.Object) error {
	err := c.Create(ctx, probe, client.DryRunAll)
	switch {
	case err == nil:
		return errProbeAccepted
	case apierrors.IsInvalid(err):
		return nil
	}
	return err
}

// invalidPolicy has a pattern that matches nothing, because it names no registry.
func invalidPolicy() *v1alpha1.PrefetchPolicy {
	return &v1alpha1.PrefetchPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: probeName},
		Spec:       v1alpha1.PrefetchPolicySpec{AllowedRepositories: []v1alpha1.RepositoryPattern{"*"}},
	}
}

// invalidDeployment is gated, and its hold timeout is not a duration.
func invalidDeployment(namespace string) *appsv1.Deployment {
	labels := map[string]string{"app": probeName}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: probeName,
			Annotations: map[string]string{v1alpha1.PrefetchAnnotation: probeName, v1alpha1.HoldTimeoutAnnotation: "unclear"},
		},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: probeName, Image: probeName}}},
			},
		},
	}
}
