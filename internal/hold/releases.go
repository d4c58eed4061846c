// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxReleases is how many sets of images are remembered of a workload, as many versions as
// a Deployment keeps ReplicaSets of by default (spec.revisionHistoryLimit).
const maxReleases = 10

// releases are the hashes of the sets of images that were let through on a workload, the
// last one first. A rollback to one of them is never held.
type releases []string

// releasesIn reads the annotation. What is no hash in it is left out.
func releasesIn(object metav1.Object) releases {
	var found releases
	for hash := range strings.SplitSeq(object.GetAnnotations()[v1alpha1.ReleasedAnnotation], ",") {
		if len(hash) == hashLength {
			found = found.with(hash)
		}
	}
	return found
}

func (r releases) include(hash string) bool { return slices.Contains(r, hash) }

// with are these and, behind them, others that are not among them, as far as they find room.
func (r releases) with(others ...string) releases {
	all := slices.Clone(r)
	for _, hash := range others {
		if len(all) < maxReleases && !all.include(hash) {
			all = append(all, hash)
		}
	}
	return all
}

// String is the value of the annotation.
func (r releases) String() string { return strings.Join(r, ",") }
