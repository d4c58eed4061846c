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
// becomes the leader. What fails is tried again, at most a minute later: what rejects the patch of
// one Deployment, such as an admission policy, is in the way of no other.
func (r *Reconciler) findOrphans(ctx context.Context) error {
	var orphans []types.NamespacedName
	listed := false
	delay := wait.Backoff{Duration: firstRetry, Factor: 2, Steps: math.MaxInt, Cap: lastRetry}
	return delay.DelayFunc().Until(ctx, true, false, func(ctx context.Context) (done bool, _ error) {
		var err error
		if !listed {
			orphans, err = r.listOrphans(ctx)
			listed = err == nil
		}
		var failed []types.NamespacedName
		for _, key := range orphans {
			if _, restoreErr := r.restore(ctx, key); restoreErr != nil {
				failed, err = append(failed, key), errors.Join(err, restoreErr)
			}
		}
		orphans = failed
		if err != nil && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "Failed to restore holds that lost their label")
		}
		return err == nil, nil
	})
}

func (r *Reconciler) listOrphans(ctx context.Context) (orphans []types.NamespacedName, err error) {
	var page appsv1.DeploymentList
	for {
		if err := r.APIReader.List(ctx, &page, client.Limit(orphanPage), client.Continue(page.Continue)); err != nil {
			return nil, fmt.Errorf("list Deployments: %w", err)
		}
		for i := range page.Items {
			if len(hold.Restore(&page.Items[i])) > 0 {
				orphans = append(orphans, client.ObjectKeyFromObject(&page.Items[i]))
			}
		}
		if page.Continue == "" {
			return orphans, nil
		}
	}
}

// loseHold restores the label of a Deployment that is no longer seen as held, or forgets its hold: it
// is gone, or its hold has ended.
func (r *Reconciler) loseHold(ctx context.Context, key types.NamespacedName) error {
	if !r.holds.endedHere(key) {
		if restored, err := r.restore(ctx, key); restored || err != nil {
			return err // its label brings it back
		}
	}
	r.forgetHold(key)
	return nil
}

// restore gives a Deployment its label back, if it is one of those that lost it. It reports whether
// it has.
func (r *Reconciler) restore(ctx context.Context, key types.NamespacedName) (restored bool, err error) {
	var deployment appsv1.Deployment
	if err := r.APIReader.Get(ctx, key, &deployment); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	patch := hold.Restore(&deployment)
	if len(patch) == 0 {
		return false, nil
	}
	document, err := json.Marshal(patch)
	if err != nil {
		return false, fmt.Errorf("encode patch: %w", err)
	}
	log.FromContext(ctx).Info("Found a hold that had lost its label", "namespace", key.Namespace, "name", key.Name)
	if err := r.Client.Patch(ctx, &deployment, client.RawPatch(types.JSONPatchType, document)); err != nil {
		return false, fmt.Errorf("patch Deployment %s: %w", key, err)
	}
	return true, nil
}
