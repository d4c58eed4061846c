// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduling

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What a Pod may say is compared with a real API server in the tests of the webhook.
func TestEveryErrorIsReturnedInOrder(t *testing.T) {
	requirement := func(key string, operator corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: operator, Values: values}}}
	}
	for _, tt := range []struct {
		reason string
		errs   field.ErrorList
		want   []string
	}{
		{"nothing is said", slices.Concat(ValidateNodeSelector(nil, nil), ValidateNodeAffinity(nil, nil), ValidateNodeAffinity(nil, &corev1.NodeAffinity{}), ValidateTolerations(nil, nil)), nil},
		{
			"keys of a selector are sorted, so that the message is always the same",
			ValidateNodeSelector(field.NewPath("s"), map[string]string{"c": "ok", "b": "no!", "a a": "no!"}),
			[]string{"s[a a]", "s[a a]", "s[b]"},
		},
		{
			"each term and each of its parts counts",
			ValidateNodeAffinity(field.NewPath("a"), &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				requirement("pool", "in"), requirement("pool", corev1.NodeSelectorOpIn, "a"), requirement("po ol", corev1.NodeSelectorOpGt, "many"),
				{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.uid", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}}},
			}}}),
			[]string{
				"a.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator",
				"a.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[2].matchExpressions[0].key",
				"a.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[2].matchExpressions[0].values[0]",
				"a.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[3].matchFields[0].key",
			},
		},
		{
			"an operator that is none says nothing about key and value",
			ValidateTolerations(field.NewPath("t"), []corev1.Toleration{{Key: "ok"}, {Operator: "exists", Value: "a b", Effect: "noSchedule"}, {}}),
			[]string{"t[1].operator", "t[1].effect", "t[2].key"},
		},
		{
			"numbers are not compared: where that is off, as it is by default, a Pod may not ask for it",
			ValidateTolerations(field.NewPath("t"), []corev1.Toleration{{Key: "cores", Operator: corev1.TolerationOpGt, Value: "4"}}),
			[]string{"t[0].operator"},
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			var fields []string
			for _, err := range tt.errs {
				fields = append(fields, err.Field)
			}
			if !slices.Equal(fields, tt.want) {
				t.Errorf("errors for %q, want %q: %v", fields, tt.want, tt.errs.ToAggregate())
			}
		})
	}
}
