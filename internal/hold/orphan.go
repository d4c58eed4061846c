// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Restore returns the patch that puts the hold label back on a Deployment that Sluice has
// paused and that lost the label while no webhook was asked: by a program that overwrites
// labels, during an outage, of a Deployment that skips the gate. The mark that is left is
// held-at, which goes with each hold. The patch is empty for every other Deployment; the
// gate controller, which sees Deployments by their label, then ends the hold or goes on with it.
func Restore(d *appsv1.Deployment) []Operation {
	have := marksOf(d)
	if !have.paused || have.hold != "" || have.heldAt == "" || !d.DeletionTimestamp.IsZero() {
		return nil
	}
	patch := []Operation{{Op: "test", Path: "/metadata/resourceVersion", Value: d.ResourceVersion}}
	return append(patch, patchMap(labelsPath, d.Labels, keyValue{v1alpha1.HoldLabel, ImagesOf(&d.Spec.Template.Spec).Hash()})...)
}
