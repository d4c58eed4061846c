// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"time"

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

// Undo returns the patch that takes off a Deployment what the gate has put on it, for a Sluice that
// goes: a hold ends, and a pause of the owner stays. It is empty where there is nothing to take off.
// What was let through stays recorded, so that a Sluice that comes later does not hold it again.
func Undo(d *appsv1.Deployment) []Operation {
	_, labelled := d.Labels[v1alpha1.HoldLabel]
	if !labelled && !marksOf(d).lostLabel() {
		return nil
	}
	next := marks{paused: true, released: releasesIn(d)}
	if Next(d, nil, Cluster{}, time.Time{}).End != EndElsewhere {
		next = marks{released: releases{ImagesOf(&d.Spec.Template.Spec).Hash()}.with(next.released...)}
	}
	patch := []Operation{{Op: "test", Path: "/metadata/resourceVersion", Value: d.ResourceVersion}}
	return append(patch, patchTo(d, next)...)
}
