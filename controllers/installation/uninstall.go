// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

// WebhookConfiguration is the name of Sluice's configurations of admission webhooks.
const WebhookConfiguration = "sluice"

// Uninstaller undoes what Sluice did to the cluster: no Deployment stays held, and no
// image stays pinned on a node.
type Uninstaller struct {
	// Client reads and writes without a cache.
	Client client.Client
	// Controller is the Deployment of the controllers, and their Lease.
	Controller client.ObjectKey
	// QuietPeriod is how long there must be nothing to do. API servers hear of a deleted
	// webhook a moment later, and controllers need one to end: what those still hold
	// or write is undone as well. The agents take the pins off in that time, too.
	QuietPeriod time.Duration
	// Interval is the time between two looks.
	Interval time.Duration
}

// Run undoes until there is nothing left to undo for the time of Settle. It ends with
// ctx, and may be run again at any time.
func (u *Uninstaller) Run(ctx context.Context) error {
	var last error
	quietSince := time.Now()
	err := wait.PollUntilContextCancel(ctx, u.Interval, true, func(ctx context.Context) (bool, error) {
		var undone int
		undone, last = u.pass(ctx)
		if undone > 0 || last != nil {
			quietSince = time.Now()
		}
		if last != nil {
			logr.FromContextOrDiscard(ctx).Error(last, "Could not undo everything yet")
		}
		return time.Since(quietSince) >= u.QuietPeriod, nil
	})
	return errors.Join(err, last)
}

// pass takes away what would do it again before it undoes what was done. It returns
// how much it did.
func (u *Uninstaller) pass(ctx context.Context) (int, error) {
	total := 0
	var errs []error
	for _, step := range []func(context.Context) (int, error){
		u.deleteWebhooks, u.stopControllers, u.deleteLease, u.release, u.deleteNodeImageSets,
	} {
		n, err := step(ctx)
		total += n
		errs = append(errs, err)
	}
	return total, errors.Join(errs...)
}

func (u *Uninstaller) deleteWebhooks(ctx context.Context) (n int, err error) {
	meta := metav1.ObjectMeta{Name: WebhookConfiguration}
	for _, configuration := range []client.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta},
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: meta},
	} {
		switch err := u.Client.Delete(ctx, configuration); {
		case err == nil:
			n++
		case !apierrors.IsNotFound(err):
			return n, fmt.Errorf("delete webhook configuration %q: %w", WebhookConfiguration, err)
		}
	}
	return n, nil
}

func (u *Uninstaller) stopControllers(ctx context.Context) (int, error) {
	var deployment appsv1.Deployment
	if err := u.Client.Get(ctx, u.Controller, &deployment); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if deployment.Spec.Replicas != nil && *deployment.Spec.Replicas == 0 {
		return 0, nil
	}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"replicas":0}}`))
	if err := u.Client.Patch(ctx, &deployment, patch); err != nil {
		return 0, fmt.Errorf("stop controllers: %w", err)
	}
	return 1, nil
}

// deleteLease deletes what the controllers elected their leader by. One that has not
// ended yet may make it again.
func (u *Uninstaller) deleteLease(ctx context.Context) (int, error) {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: u.Controller.Namespace, Name: u.Controller.Name}}
	switch err := u.Client.Delete(ctx, lease); {
	case apierrors.IsNotFound(err):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("delete the Lease of the controllers: %w", err)
	}
	return 1, nil
}

// release lets every held Deployment go on, and leaves a pause of its owner's.
func (u *Uninstaller) release(ctx context.Context) (n int, err error) {
	var held appsv1.DeploymentList
	if err := u.Client.List(ctx, &held, client.HasLabels{v1alpha1.HoldLabel}); err != nil {
		return 0, fmt.Errorf("list held Deployments: %w", err)
	}
	var errs []error
	for i := range held.Items {
		deployment := &held.Items[i]
		// With the version that was looked at: what has moved on is looked at again.
		patch := client.MergeFromWithOptions(deployment.DeepCopy(), client.MergeFromWithOptimisticLock{})
		hash, pausedByOwner := deployment.Labels[v1alpha1.HoldLabel], hold.Next(deployment, nil, time.Now()).End == hold.EndElsewhere
		delete(deployment.Labels, v1alpha1.HoldLabel)
		delete(deployment.Annotations, v1alpha1.HeldAtAnnotation)
		if !pausedByOwner {
			// Were Sluice installed again, it would not hold these images once more.
			metav1.SetMetaDataAnnotation(&deployment.ObjectMeta, v1alpha1.ReleasedAnnotation, hash)
			deployment.Spec.Paused = false
		}
		if err := u.Client.Patch(ctx, deployment, patch); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("release Deployment %s/%s: %w", deployment.Namespace, deployment.Name, err))
			continue
		}
		n++
		logr.FromContextOrDiscard(ctx).Info("Took the hold off Deployment", "namespace", deployment.Namespace, "name", deployment.Name, "paused", deployment.Spec.Paused)
	}
	return n, errors.Join(errs...)
}

// deleteNodeImageSets has the agents let go of the images: where there is no
// NodeImageSet, nothing stays pinned.
func (u *Uninstaller) deleteNodeImageSets(ctx context.Context) (int, error) {
	var sets v1alpha1.NodeImageSetList
	if err := u.Client.List(ctx, &sets); err != nil {
		return 0, fmt.Errorf("list NodeImageSets: %w", err)
	}
	var errs []error
	for i := range sets.Items {
		if err := u.Client.Delete(ctx, &sets.Items[i]); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("delete NodeImageSet %q: %w", sets.Items[i].Name, err))
		}
	}
	return len(sets.Items), errors.Join(errs...)
}
