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

// probeName is the name of objects that are never stored.
const probeName = "sluice-probe"

// errProbeAccepted is what a probe that should be refused and is not tells of.
var errProbeAccepted = errors.New("the API server does not ask the webhooks yet, or gets no answer")

// AwaitWebhooks returns when the API server asks Sluice's webhooks and understands
// their answers: it knows their configuration, trusts their certificate and reaches a
// controller. All that takes a moment after the controllers are Ready. It is found out
// by dry runs of what the webhooks refuse; the Deployment among them is in namespace.
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

// tryProbe fails unless the probe is refused for what it says.
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

// invalidPolicy allows one segment of no registry, which can match nothing.
func invalidPolicy() *v1alpha1.PrefetchPolicy {
	return &v1alpha1.PrefetchPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: probeName},
		Spec:       v1alpha1.PrefetchPolicySpec{AllowedRepositories: []v1alpha1.RepositoryPattern{"*"}},
	}
}

// invalidDeployment is gated, with a timeout that is no duration.
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
