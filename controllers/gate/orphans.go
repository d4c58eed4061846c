// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/internal/hold"
)

// orphanPage is how many Deployments are read at a time.
const orphanPage = 500

// findOrphans looks once at all Deployments for those that Sluice has paused and that lost
// the label, by which the cache selects, while nobody looked. It runs as this replica
// becomes the leader. Until nothing fails it looks again, at most a minute later: what rejects one
// Deployment's patch, such as an admission policy, is in the way of no other.
func (r *Reconciler) findOrphans(ctx context.Context) error {
	delay := wait.Backoff{Duration: firstRetry, Factor: 2, Steps: math.MaxInt, Cap: lastRetry}
	return delay.DelayFunc().Until(ctx, true, false, func(ctx context.Context) (bool, error) {
		err := r.lookForOrphans(ctx)
		if err != nil && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "Failed to look for holds that lost their label")
		}
		return err == nil, nil
	})
}

func (r *Reconciler) lookForOrphans(ctx context.Context) error {
	var failed []error
	var page appsv1.DeploymentList
	for {
		if err := r.APIReader.List(ctx, &page, client.Limit(orphanPage), client.Continue(page.Continue)); err != nil {
			return errors.Join(append(failed, fmt.Errorf("list Deployments: %w", err))...)
		}
		for i := range page.Items {
			_, err := r.restore(ctx, &page.Items[i])
			failed = append(failed, err)
		}
		if page.Continue == "" {
			return errors.Join(failed...)
		}
	}
}

// loseHold restores the label of a Deployment that is no longer seen as held, or forgets its hold: it
// is gone, or the webhook has ended the hold.
func (r *Reconciler) loseHold(ctx context.Context, key types.NamespacedName) error {
	if r.holds.tracks(key) {
		var live appsv1.Deployment
		err := r.APIReader.Get(ctx, key, &live)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("get Deployment: %w", err)
		}
		if err == nil {
			if restored, err := r.restore(ctx, &live); restored || err != nil {
				return err // its label brings it back
			}
		}
	}
	r.forgetHold(key)
	return nil
}

// restore gives a Deployment its label back, if it is one of those that lost it. It reports whether
// it has.
func (r *Reconciler) restore(ctx context.Context, deployment *appsv1.Deployment) (restored bool, err error) {
	patch := hold.Restore(deployment)
	if len(patch) == 0 {
		return false, nil
	}
	document, err := json.Marshal(patch)
	if err != nil {
		return false, fmt.Errorf("encode patch: %w", err)
	}
	log.FromContext(ctx).Info("Found a hold that had lost its label", "namespace", deployment.Namespace, "name", deployment.Name)
	err = r.Client.Patch(ctx, deployment, client.RawPatch(types.JSONPatchType, document))
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("patch Deployment %s/%s: %w", deployment.Namespace, deployment.Name, err)
	}
	return err == nil, nil
}
