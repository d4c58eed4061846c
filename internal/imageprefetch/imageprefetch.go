// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package imageprefetch reads from ImagePrefetches what several programs must read alike.
package imageprefetch

import (
	"crypto/sha256"
	"encoding/hex"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxRefresh bounds the annotation that the status repeats as it is, in bytes; of a longer
// one it has a hash.
const maxRefresh = 256

// Refresh is what the tags of an ImagePrefetch are to be resolved for: the value of
// sluice.dev/refresh, or the SHA-256 of a value of more than 256 bytes; empty if there is
// none.
func Refresh(object metav1.Object) string {
	refresh := object.GetAnnotations()[v1alpha1.RefreshAnnotation]
	if len(refresh) > maxRefresh {
		sum := sha256.Sum256([]byte(refresh))
		return hex.EncodeToString(sum[:])
	}
	return refresh
}

// AllowedFailures is how many of a number of nodes may fail, as spec.failureTolerance says.
func AllowedFailures(spec *v1alpha1.ImagePrefetchSpec, nodes int) int {
	if spec.FailureTolerance == nil {
		return 0
	}
	allowed, err := intstr.GetScaledValueFromIntOrPercent(spec.FailureTolerance, nodes, false)
	if err != nil {
		return 0 // the schema admits no such value
	}
	return allowed
}
