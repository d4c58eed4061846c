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
	if !marksOf(d).lostLabel() || !d.DeletionTimestamp.IsZero() {
		return nil
	}
	patch := []Operation{{Op: "test", Path: "/metadata/resourceVersion", Value: d.ResourceVersion}}
	return append(patch, patchMap(labelsPath, d.Labels, keyValue{v1alpha1.HoldLabel, storedMarks(d).hold})...)
}

// lostLabel reports whether they are those of a hold but for the label.
func (m marks) lostLabel() bool { return m.paused && m.hold == "" && m.heldAt != "" }

// storedMarks are the marks of what is stored, with a label that was lost.
func storedMarks(d *appsv1.Deployment) marks {
	stored := marksOf(d)
	if stored.lostLabel() {
		stored.hold = ImagesOf(&d.Spec.Template.Spec).Hash()
	}
	return stored
}
