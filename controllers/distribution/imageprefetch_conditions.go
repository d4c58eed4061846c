// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// ready is the Ready condition: the summary.
func (a account) ready(t tally) metav1.Condition {
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	desired := int32(len(a.outcome.Nodes))
	tolerance := tolerated(&a.prefetch.object.Spec, len(a.outcome.Nodes))
	progress := a.progress(t)
	switch {
	case a.prefetch.refusal != nil:
		condition.Reason, condition.Message = a.prefetch.refusal.reason, a.prefetch.refusal.message
	case desired == 0:
		condition.Reason = v1alpha1.ReasonNoMatchingNodes
		condition.Message = "no node is Linux, Ready and schedulable, has only taints that spec.tolerations admits, and has the labels of spec.nodeSelector: " +
			"change the selector or the tolerations, or the nodes"
	case t.ready == desired:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, v1alpha1.ReasonAllNodesHoldImages, progress
	case t.failed > 0 && t.failed <= tolerance && t.ready+t.failed == desired:
		condition.Status, condition.Reason = metav1.ConditionTrue, v1alpha1.ReasonFailuresTolerated
		condition.Message = fmt.Sprintf("%s; spec.failureTolerance admits %d", progress, tolerance)
	case a.writeFailure() != "":
		condition.Reason = v1alpha1.ReasonReconcileFailed
		condition.Message = a.writeFailure() + "; the controller tries again"
	case t.failed > tolerance:
		condition.Reason, condition.Message = v1alpha1.ReasonNodesFailed, progress+"; see status.failures"
	case t.unresolved+t.unheld > 0:
		condition.Reason, condition.Message = v1alpha1.ReasonWaitingForSeeds, progress+a.waiting(t)
	default:
		condition.Reason, condition.Message = v1alpha1.ReasonDistributing, progress
	}
	return condition
}

// progress says how far it is, in numbers.
func (a account) progress(t tally) string {
	hold, what := "hold", fmt.Sprintf("all %d images", len(a.prefetch.images))
	if len(a.prefetch.images) == 1 {
		what = "the image"
	}
	if len(a.outcome.Nodes) == 1 {
		hold = "holds"
	}
	parts := []string{fmt.Sprintf("%d of %s %s %s", t.ready, counted(len(a.outcome.Nodes), "node", "nodes"), hold, what)}
	if t.pulling > 0 {
		parts = append(parts, fmt.Sprintf("%d pulling", t.pulling))
	}
	if t.failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed%s", t.failed, reasons(t.final)))
	}
	if t.retrying > 0 {
		parts = append(parts, fmt.Sprintf("%d trying again%s", t.retrying, reasons(t.passing)))
	}
	return strings.Join(parts, "; ")
}

// waiting says what the seeds have still to bring.
func (a account) waiting(t tally) string {
	var text string
	if t.unresolved > 0 {
		text += fmt.Sprintf("; %s to be resolved", counted(t.unresolved, "image is", "images are"))
	}
	if t.unheld > 0 {
		text += fmt.Sprintf("; %s on the way to a first node", counted(t.unheld, "image is", "images are"))
	}
	return text
}

// writeFailure says which NodeImageSet could not be written, of the first desired
// node that is concerned. The API server's words may differ from try to try; its
// reason does not.
func (a account) writeFailure() string {
	for _, name := range a.outcome.Nodes {
		if err, ok := a.unwritten[name]; ok {
			reason := string(apierrors.ReasonForError(err))
			if reason == "" {
				reason = "the API server could not be reached"
			}
			return fmt.Sprintf("the NodeImageSet of node %q could not be written: %s", name, reason)
		}
	}
	return ""
}

// degraded is the Degraded condition: what is worse than was asked for.
func (a account) degraded(t tally) metav1.Condition {
	condition := metav1.Condition{
		Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonAsExpected, Message: "nothing to report",
	}
	if a.prefetch.refusal != nil {
		return condition
	}
	var reason string
	var parts []string
	add := func(why, text string) {
		if reason == "" {
			reason = why
		}
		parts = append(parts, text)
	}
	if t.failed > 0 {
		add(v1alpha1.ReasonNodeFailures, fmt.Sprintf("%s failed%s", counted(t.failed, "node", "nodes"), reasons(t.final)))
	}
	if t.retrying > 0 {
		add(v1alpha1.ReasonNodeFailures, fmt.Sprintf("%s trying again%s", counted(t.retrying, "node is", "nodes are"), reasons(t.passing)))
	}
	if a.outcome.WithoutMirror {
		add(v1alpha1.ReasonMirrorUnavailable, "the mirror served nothing, so nodes pull from the upstream registry, one after the other: "+
			"check that Spegel runs and that hosts.toml on the nodes names it")
	}
	if missing := a.outcome.MissingReplicas; missing > 0 {
		add(v1alpha1.ReasonTooFewNodes, fmt.Sprintf("spec.replicas asks for %s more than match; all that match are used",
			counted(missing, "node", "nodes")))
	}
	if left := len(a.outcome.LeftOutSecrets); left > 0 {
		add(v1alpha1.ReasonPullSecretsLeftOut, fmt.Sprintf("spec.imagePullSecrets: %s not used everywhere, beginning with %q: a node is given 64 for one image, "+
			"and ImagePrefetches of the same image that come first by namespace and name have as many",
			counted(left, "is", "are"), a.outcome.LeftOutSecrets[0]))
	}
	if reason != "" {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, reason, strings.Join(parts, "; ")
	}
	return condition
}

// reasons are the different reasons of some failures, in alphabetical order.
func reasons(failures []v1alpha1.NodeFailure) string {
	if len(failures) == 0 {
		return ""
	}
	names := make([]string, len(failures))
	for i, failure := range failures {
		names[i] = failure.Reason
	}
	slices.Sort(names)
	return " (" + strings.Join(slices.Compact(names), ", ") + ")"
}
