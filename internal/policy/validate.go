// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Validate returns an error for each part of a policy that would mean something else than it says:
// a selector or a pattern that does not parse, is ambiguous or can match nothing.
func Validate(spec *v1alpha1.PrefetchPolicySpec) field.ErrorList {
	path := field.NewPath("spec")
	invalid := metav1validation.ValidateLabelSelector(&spec.NamespaceSelector,
		metav1validation.LabelSelectorValidationOptions{}, path.Child("namespaceSelector"))
	var denied []rule
	for i, text := range spec.DeniedRepositories {
		p, err := check(string(text))
		if err != nil {
			invalid = append(invalid, field.Invalid(path.Child("deniedRepositories").Index(i), text, err.Error()))
			continue
		}
		denied = append(denied, rule{pattern: p, text: text})
	}
	for i, text := range spec.AllowedRepositories {
		at := path.Child("allowedRepositories").Index(i)
		p, err := check(string(text))
		if err != nil {
			invalid = append(invalid, field.Invalid(at, text, err.Error()))
			continue
		}
		for _, denial := range denied {
			if denial.covers(p) {
				invalid = append(invalid, field.Invalid(at, text, fmt.Sprintf("cannot match: spec.deniedRepositories has %q, which denies all of it", denial.text)))
				break
			}
		}
	}
	return invalid
}

// Warnings returns a warning for each part of a policy that is valid and seldom intended.
func Warnings(spec *v1alpha1.PrefetchPolicySpec) []string {
	if len(spec.AllowedRepositories) == 0 {
		return []string{`spec.allowedRepositories is empty: a namespace that no other policy selects may prefetch nothing; to add limits only, allow "*/**"`}
	}
	return nil
}

// Unchanged reports whether an update changes nothing that a policy can deny.
func Unchanged(before, after *v1alpha1.ImagePrefetchSpec) bool {
	if (before.Replicas == nil) != (after.Replicas == nil) || before.Replicas != nil && *before.Replicas != *after.Replicas {
		return false
	}
	if len(before.Images) != len(after.Images) {
		return false
	}
	had := make(map[v1alpha1.ImageReference]bool, len(before.Images))
	for _, image := range before.Images {
		had[image] = true
	}
	for _, image := range after.Images {
		if !had[image] {
			return false
		}
	}
	return true
}
