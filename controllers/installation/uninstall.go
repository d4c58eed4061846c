// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

// WebhookConfiguration is the name of both configurations of Sluice's webhooks.
const WebhookConfiguration = "sluice"

// CAConfigMap is the name of the ConfigMap in which the controllers publish the CA of their certificate.
const CAConfigMap = "sluice-controller-ca"

// deploymentPage is how many Deployments are read at a time.
const deploymentPage = 500

// Uninstaller undoes what Sluice did to the cluster. After it no Deployment is held, and no image is
// pinned on a node.
type Uninstaller struct {
	// Client reads and writes without a cache.
	Client client.Client
	// Controller is the name of the Deployment of the controllers, and of their Lease.
	Controller client.ObjectKey
	// QuietPeriod is how long nothing must be left to undo before Run returns. API servers call a
	// deleted webhook for a moment longer, and controllers need a moment to end: what they hold or
	// write in that time is undone as well. The agents unpin images in that time, too.
	QuietPeriod time.Duration
	// Interval is the time between two passes.
	Interval time.Duration
}

// Run makes passes until nothing was left to undo for the QuietPeriod. It fails when ctx ends before
// that, and may be run again at any time.
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

// pass first removes what would do it all again, and then undoes what was done. It returns the number
// of objects that it changed.
func (u *Uninstaller) pass(ctx context.Context) (int, error) {
	total := 0
	var errs []error
	for _, step := range []func(context.Context) (int, error){
		u.deleteWebhooks, u.stopControllers, u.deleteOwn, u.release, u.deleteNodeImageSets,
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

// deleteOwn deletes what the controllers keep beside them: the Lease of the leader election, and the
// ConfigMap with the CA. A controller that has not ended may create them again, so each pass deletes them.
func (u *Uninstaller) deleteOwn(ctx context.Context) (n int, err error) {
	for _, object := range []client.Object{
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: u.Controller.Namespace, Name: u.Controller.Name}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: u.Controller.Namespace, Name: CAConfigMap}},
	} {
		switch err := u.Client.Delete(ctx, object); {
		case err == nil:
			n++
		case !apierrors.IsNotFound(err):
			return n, fmt.Errorf("delete %T %q of the controllers: %w", object, object.GetName(), err)
		}
	}
	return n, nil
}

// release takes every hold off. A Deployment that its owner paused stays paused. All Deployments are
// looked at, because a hold may have lost its label.
func (u *Uninstaller) release(ctx context.Context) (n int, err error) {
	var errs []error
	var page appsv1.DeploymentList
	for {
		if err := u.Client.List(ctx, &page, client.Limit(deploymentPage), client.Continue(page.Continue)); err != nil {
			return n, errors.Join(append(errs, fmt.Errorf("list Deployments: %w", err))...)
		}
		for i := range page.Items {
			undone, err := u.undo(ctx, &page.Items[i])
			n += undone
			errs = append(errs, err)
		}
		if page.Continue == "" {
			return n, errors.Join(errs...)
		}
	}
}

// undo takes the hold off one Deployment. The patch names the version that was read: if that has
// changed, the next pass decides again.
func (u *Uninstaller) undo(ctx context.Context, deployment *appsv1.Deployment) (int, error) {
	patch := hold.Undo(deployment)
	if len(patch) == 0 {
		return 0, nil
	}
	document, err := json.Marshal(patch)
	if err != nil {
		return 0, fmt.Errorf("encode patch: %w", err)
	}
	switch err := u.Client.Patch(ctx, deployment, client.RawPatch(types.JSONPatchType, document)); {
	case apierrors.IsNotFound(err):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("release Deployment %s/%s: %w", deployment.Namespace, deployment.Name, err)
	}
	logr.FromContextOrDiscard(ctx).Info("Took the hold off Deployment", "namespace", deployment.Namespace, "name", deployment.Name, "paused", deployment.Spec.Paused)
	return 1, nil
}

// deleteNodeImageSets makes the agents unpin their images: an agent without a NodeImageSet pins none.
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
