// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduling

import (
	"errors"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// What may stand in a toleration. The comparison operators are left out, as in tolerates.
var (
	tolerationOperators = []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}
	taintEffects        = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
)

// ValidateNodeSelector returns an error for each key and value that no label of a node can have,
// in the order of the keys.
func ValidateNodeSelector(path *field.Path, selector map[string]string) (invalid field.ErrorList) {
	for _, key := range slices.Sorted(maps.Keys(selector)) {
		invalid = append(invalid, metav1validation.ValidateLabelName(key, path.Key(key))...)
		for _, reason := range validation.IsValidLabelValue(selector[key]) {
			invalid = append(invalid, field.Invalid(path.Key(key), selector[key], reason))
		}
	}
	return invalid
}

// ValidateNodeAffinity returns an error for each part of the required terms that the scheduler
// cannot read, or that no node can match.
func ValidateNodeAffinity(path *field.Path, affinity *corev1.NodeAffinity) (invalid field.ErrorList) {
	if affinity == nil || affinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	required := affinity.RequiredDuringSchedulingIgnoredDuringExecution
	path = path.Child("requiredDuringSchedulingIgnoredDuringExecution")
	terms := path.Child("nodeSelectorTerms")
	if len(required.NodeSelectorTerms) == 0 {
		return append(invalid, field.Required(terms, "write one term at least: without any, no node matches"))
	}
	_, err := nodeaffinity.NewNodeSelector(required, field.WithPath(path))
	var unreadable utilerrors.Aggregate
	if errors.As(err, &unreadable) {
		for _, err := range unreadable.Errors() {
			var of *field.Error
			if !errors.As(err, &of) {
				of = field.Invalid(terms, field.OmitValueType{}, err.Error())
			}
			invalid = append(invalid, of)
		}
	}
	for i, term := range required.NodeSelectorTerms {
		for j, requirement := range term.MatchFields {
			if requirement.Key != metav1.ObjectNameField {
				invalid = append(invalid, field.NotSupported(terms.Index(i).Child("matchFields").Index(j).Child("key"), requirement.Key, []string{metav1.ObjectNameField}))
			}
		}
	}
	return invalid
}

// ValidateTolerations returns an error for each part that a toleration of a Pod could not have
// either, and that would make it tolerate nothing or something else.
// Source: ValidateTolerations in pkg/apis/core/validation of Kubernetes.
func ValidateTolerations(path *field.Path, tolerations []corev1.Toleration) (invalid field.ErrorList) {
	for i := range tolerations {
		invalid = append(invalid, validateToleration(path.Index(i), &tolerations[i])...)
	}
	return invalid
}

func validateToleration(path *field.Path, t *corev1.Toleration) (invalid field.ErrorList) {
	if t.Key != "" {
		invalid = append(invalid, metav1validation.ValidateLabelName(t.Key, path.Child("key"))...)
	}
	switch {
	case t.Operator != "" && !slices.Contains(tolerationOperators, t.Operator):
		invalid = append(invalid, field.NotSupported(path.Child("operator"), t.Operator, tolerationOperators))
	case t.Key == "" && t.Operator != corev1.TolerationOpExists:
		invalid = append(invalid, field.Required(path.Child("key"), "write the key of a taint; to tolerate every taint, write operator Exists without a key"))
	case t.Operator == corev1.TolerationOpExists && t.Value != "":
		invalid = append(invalid, field.Invalid(path.Child("value"), t.Value, "leave it out with operator Exists, or write operator Equal"))
	case t.Operator != corev1.TolerationOpExists:
		if reasons := validation.IsValidLabelValue(t.Value); len(reasons) > 0 {
			invalid = append(invalid, field.Invalid(path.Child("value"), t.Value, strings.Join(reasons, "; ")))
		}
	}
	switch {
	case t.Effect != "" && !slices.Contains(taintEffects, t.Effect):
		invalid = append(invalid, field.NotSupported(path.Child("effect"), t.Effect, taintEffects))
	case t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute:
		invalid = append(invalid, field.Invalid(path.Child("effect"), t.Effect, "write NoExecute, or leave tolerationSeconds out"))
	}
	return invalid
}
