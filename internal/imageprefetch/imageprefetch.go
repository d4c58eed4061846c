// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package imageprefetch reads from ImagePrefetches what several programs must read alike.
package imageprefetch

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxRefresh is the longest value, in bytes, that the status repeats as it is. Of a longer one it
// has a hash.
const maxRefresh = 256

// Refresh returns the value of sluice.dev/refresh, for which the tags of an ImagePrefetch are to be
// resolved. Of a value of more than 256 bytes it is the SHA-256. It is empty if there is none.
func Refresh(object metav1.Object) string {
	refresh := object.GetAnnotations()[v1alpha1.RefreshAnnotation]
	if len(refresh) > maxRefresh {
		sum := sha256.Sum256([]byte(refresh))
		return hex.EncodeToString(sum[:])
	}
	return refresh
}

// ServiceAccountName returns the name of the ServiceAccount, in the namespace of the ImagePrefetch,
// whose pull secrets count where the spec names none.
func ServiceAccountName(spec *v1alpha1.ImagePrefetchSpec) string {
	return cmp.Or(spec.ServiceAccountName, "default")
}

// AllowedFailures returns how many of so many nodes may fail, as spec.failureTolerance says.
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
