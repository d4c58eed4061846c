// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/internal/hold"
)

// orphanPage is how many Deployments are read at a time.
const orphanPage = 500

// findOrphans looks once at all Deployments for those that Sluice has paused and that lost
// the label, by which the cache selects, while nobody looked. It runs as this replica
// becomes the leader; if it fails, the process ends and the next leader looks again.
func (r *Reconciler) findOrphans(ctx context.Context) error {
	var page appsv1.DeploymentList
	for {
		if err := r.APIReader.List(ctx, &page, client.Limit(orphanPage), client.Continue(page.Continue)); err != nil {
			return fmt.Errorf("list Deployments: %w", err)
		}
		for i := range page.Items {
			if err := r.restore(ctx, &page.Items[i]); err != nil {
				return err
			}
		}
		if page.Continue == "" {
			return nil
		}
	}
}

// restore gives a Deployment its label back, if it is one of those.
func (r *Reconciler) restore(ctx context.Context, deployment *appsv1.Deployment) error {
	patch := hold.Restore(deployment)
	if len(patch) == 0 {
		return nil
	}
	document, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	log.FromContext(ctx).Info("Found a hold that had lost its label", "namespace", deployment.Namespace, "name", deployment.Name)
	err = r.Client.Patch(ctx, deployment, client.RawPatch(types.JSONPatchType, document))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
		return nil // somebody writes it right now; they pass the webhook
	}
	if err != nil {
		return fmt.Errorf("patch Deployment %s/%s: %w", deployment.Namespace, deployment.Name, err)
	}
	return nil
}
