// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package imageprefetch

import (
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/scheduling"
)

// ValidatePlacement returns an error for each part of what a spec says about nodes that a Pod could
// not say either: it would match nothing without a word. Fields that were so before are left out,
// so that what is stored can be updated. Before is the zero spec for an object that is new.
func ValidatePlacement(before, after *v1alpha1.ImagePrefetchSpec) (invalid field.ErrorList) {
	path := field.NewPath("spec")
	if !apiequality.Semantic.DeepEqual(before.NodeSelector, after.NodeSelector) {
		invalid = append(invalid, scheduling.ValidateNodeSelector(path.Child("nodeSelector"), after.NodeSelector)...)
	}
	if !apiequality.Semantic.DeepEqual(before.NodeAffinity, after.NodeAffinity) {
		invalid = append(invalid, scheduling.ValidateNodeAffinity(path.Child("nodeAffinity"), after.NodeAffinity)...)
	}
	if !apiequality.Semantic.DeepEqual(before.Tolerations, after.Tolerations) {
		invalid = append(invalid, scheduling.ValidateTolerations(path.Child("tolerations"), after.Tolerations)...)
	}
	return invalid
}
