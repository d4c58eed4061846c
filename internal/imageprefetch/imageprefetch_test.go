// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package imageprefetch

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestRefresh(t *testing.T) {
	long := strings.Repeat("x", 257)
	tests := []struct {
		name        string
		annotations map[string]string
		want        string
	}{
		{"no annotation", nil, ""},
		{"a short one stands as it is", map[string]string{v1alpha1.RefreshAnnotation: "2026-11-28"}, "2026-11-28"},
		{"the longest that stands as it is", map[string]string{v1alpha1.RefreshAnnotation: long[:256]}, long[:256]},
		{
			"of a longer one stands the hash", map[string]string{v1alpha1.RefreshAnnotation: long},
			"15eb95a462ee20bd91a415ae2d4aed341288186ddaa2b37908f7d592f0c3f85f",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Refresh(&metav1.ObjectMeta{Annotations: tt.annotations})
			if got != tt.want {
				t.Errorf("Refresh = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAllowedFailures(t *testing.T) {
	tests := []struct {
		name      string
		tolerance *intstr.IntOrString
		nodes     int
		want      int
	}{
		{"unset is none", nil, 100, 0},
		{"a number", ptr.To(intstr.FromInt32(2)), 100, 2},
		{"a percentage", ptr.To(intstr.FromString("10%")), 30, 3},
		{"a percentage is rounded down", ptr.To(intstr.FromString("10%")), 39, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := AllowedFailures(&v1alpha1.ImagePrefetchSpec{FailureTolerance: tt.tolerance}, tt.nodes); got != tt.want {
				t.Errorf("AllowedFailures = %d, want %d", got, tt.want)
			}
		})
	}
}
