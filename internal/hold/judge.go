// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
)

// Cause is why images that were not let through before may roll out.
type Cause string

const (
	// CauseReady: the ImagePrefetch is Ready for its current spec, and covers every image.
	CauseReady Cause = "Ready"
	// CauseEvidence: a node has all images, and so has every other on which the Pods can run,
	// except those that are excused.
	CauseEvidence Cause = "Evidence"
	// CauseNoMatchingNodes: no node matches the Pods, so that pending Pods are what brings one.
	CauseNoMatchingNodes Cause = "NoMatchingNodes"
	// CauseDenied: a policy denies the ImagePrefetch, and the workload would rather roll out
	// than wait for ever.
	CauseDenied Cause = "Denied"
)

// defaultAllowed and allowedShare are how many nodes may fail under OnTimeoutRelease, the
// larger of both: one node must not cost every rollout its whole timeout.
const (
	defaultAllowed = 1
	allowedShare   = 20 // a twentieth of the nodes
)

// verdict is what is known about a template at one moment.
type verdict struct {
	// cause is why it may roll out; empty while it is to wait.
	cause Cause
	// wait is what is missing; nil under CauseReady alone.
	wait *Wait
	// evidence has the numbers.
	evidence Evidence
}

// judge decides whether a template may roll out. Nodes that came after heldAt are excused;
// at the zero time none is.
func judge(template *corev1.PodTemplateSpec, settings Settings, prefetch *v1alpha1.ImagePrefetch, cluster Cluster, heldAt time.Time) verdict {
	images := ImagesOf(&template.Spec)
	evidence := gather(&template.Spec, images, cluster, heldAt, prefetch)
	result := verdict{evidence: evidence, wait: waitFor(images, settings, prefetch, evidence)}
	switch {
	case result.wait == nil:
		result.cause = CauseReady
	case evidence.Met(settings.allowedFailures(prefetch, evidence.Awaited)):
		result.cause = CauseEvidence
	case evidence.NothingToWaitFor():
		result.cause = CauseNoMatchingNodes
	case settings.OnTimeout == OnTimeoutRelease && denied(prefetch):
		result.cause = CauseDenied
	}
	return result
}

// allowedFailures is how many of the awaited nodes may have failed: what failureTolerance of
// the ImagePrefetch allows. Under OnTimeoutRelease it is at least defaultAllowed, and at least a
// twentieth of the nodes.
func (s Settings) allowedFailures(prefetch *v1alpha1.ImagePrefetch, awaited int) int {
	allowed := 0
	if prefetch != nil {
		allowed = imageprefetch.AllowedFailures(&prefetch.Spec, awaited)
	}
	if s.OnTimeout == OnTimeoutRelease {
		allowed = max(allowed, defaultAllowed, awaited/allowedShare)
	}
	return allowed
}

// denied reports whether a policy denies the ImagePrefetch as it is now.
func denied(prefetch *v1alpha1.ImagePrefetch) bool {
	if prefetch == nil {
		return false
	}
	ready := meta.FindStatusCondition(prefetch.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && ready.Reason == v1alpha1.ReasonPolicyDenied && ready.Status != metav1.ConditionTrue &&
		ready.ObservedGeneration == prefetch.Generation
}

// explain says why a rollout goes on that did not wait for its images.
func (v verdict) explain() string {
	switch v.cause {
	case CauseNoMatchingNodes:
		return "no node has the labels, the affinity and the taints that its Pods ask for, so that there is nothing to wait for; " +
			"the Pods pull on the nodes that come"
	case CauseDenied:
		return "waiting cannot help: " + v.wait.Message
	case CauseEvidence:
		return fmt.Sprintf("%d of %d nodes that its Pods can run on have all images%s",
			v.evidence.Complete, v.evidence.Awaited, v.evidence.excused())
	case CauseReady:
	}
	return ""
}

// unselected says on how many nodes nobody brings the images, although the Pods may run
// there; empty if there is none.
func (v verdict) unselected(prefetch string) string {
	if v.evidence.Unselected == 0 {
		return ""
	}
	return fmt.Sprintf("ImagePrefetch %q does not select %d of the %d nodes that the Pods can run on: Pods that start there pull for themselves; "+
		"give both the same nodeSelector, affinity and tolerations, and the ImagePrefetch no replicas",
		prefetch, v.evidence.Unselected, v.evidence.Awaited+v.evidence.Joined)
}
