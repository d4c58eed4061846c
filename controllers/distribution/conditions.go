// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
)

// readyCondition returns the Ready condition, by the first case that applies. Joining nodes are
// not waited for.
func (in statusInput) readyCondition(counts nodeCounts) metav1.Condition {
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	desired := int32(len(in.outcome.Nodes))
	awaited := desired - int32(len(counts.joining))
	allowed := int32(imageprefetch.AllowedFailures(&in.prefetch.object.Spec, len(in.outcome.Nodes)))
	progress := in.progressMessage(counts)
	switch {
	case in.prefetch.blocker != nil:
		condition.Reason, condition.Message = in.prefetch.blocker.reason, in.prefetch.blocker.message
	case desired == 0 && len(in.outcome.Uncovered) > 0:
		condition.Reason = v1alpha1.ReasonNoMatchingNodes
		condition.Message = fmt.Sprintf("no Sluice agent serves %s: the agents' DaemonSet does not select them, or their container runtime is not containerd 2.1 or newer "+
			"(see their NodeImageSets)", firstNames(in.outcome.Uncovered))
	case desired == 0:
		condition.Reason = v1alpha1.ReasonNoMatchingNodes
		condition.Message = "no node matches spec.nodeSelector and spec.nodeAffinity, runs Linux, is Ready and schedulable, " +
			"and has only taints that spec.tolerations tolerates: change the spec or the nodes"
	case counts.ready > 0 && counts.ready == awaited:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, v1alpha1.ReasonAllNodesHoldImages, progress
	case counts.failed > 0 && counts.failed <= allowed && counts.ready+counts.failed == awaited:
		condition.Status, condition.Reason = metav1.ConditionTrue, v1alpha1.ReasonFailuresTolerated
		condition.Message = fmt.Sprintf("%s; spec.failureTolerance allows %d", progress, allowed)
	case in.writeFailureMessage() != "":
		condition.Reason = v1alpha1.ReasonReconcileFailed
		condition.Message = in.writeFailureMessage() + "; the controller tries again"
	case counts.failed > allowed:
		condition.Reason, condition.Message = v1alpha1.ReasonNodesFailed, progress+"; see status.failures"
	case len(in.outcome.Undecided) > 0:
		condition.Reason, condition.Message = v1alpha1.ReasonNodesDisagree, in.undecidedMessage()
	case counts.unresolved+counts.onNoNode > 0:
		condition.Reason, condition.Message = v1alpha1.ReasonWaitingForSeeds, progress+in.seedMessage(counts)
	default:
		condition.Reason, condition.Message = v1alpha1.ReasonDistributing, progress
	}
	return condition
}

// undecidedMessage says why the tag of a node-local image means nothing yet.
func (in statusInput) undecidedMessage() string {
	name := slices.Min(slices.Collect(maps.Keys(in.outcome.Undecided)))
	found := in.outcome.Undecided[name]
	if found == nil {
		return name + " is local to the nodes, and not all of them have it: import it on every node; spec.failureTolerance does not count here"
	}
	return fmt.Sprintf("%s is local to the nodes, and means different images there: %s on %s, %s on %s; import the same image on every node, "+
		"for several architectures one index", name, found.Digests[0], found.Nodes[0], found.Digests[1], found.Nodes[1])
}

// progressMessage returns the counts in words.
func (in statusInput) progressMessage(counts nodeCounts) string {
	verb, what := "have", fmt.Sprintf("all %d images", len(in.prefetch.images))
	if len(in.prefetch.images) == 1 {
		what = "the image"
	}
	if len(in.outcome.Nodes) == 1 {
		verb = "has"
	}
	parts := []string{fmt.Sprintf("%d of %s %s %s", counts.ready, quantity(len(in.outcome.Nodes), "node", "nodes"), verb, what)}
	if counts.pulling > 0 {
		parts = append(parts, fmt.Sprintf("%d pulling", counts.pulling))
	}
	if counts.failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed%s", counts.failed, reasonList(counts.final)))
	}
	if counts.retrying > 0 {
		parts = append(parts, fmt.Sprintf("%d trying again%s", counts.retrying, reasonList(counts.retried)))
	}
	if len(counts.joining) > 0 {
		parts = append(parts, fmt.Sprintf("%d joining (%s)", len(counts.joining), firstNames(counts.joining)))
	}
	if uncovered := in.outcome.Uncovered; len(uncovered) > 0 {
		parts = append(parts, fmt.Sprintf("%d not counted, since no Sluice agent serves them (%s)", len(uncovered), firstNames(uncovered)))
	}
	return strings.Join(parts, "; ")
}

// firstNames returns the names of the first few nodes.
func firstNames(nodes []string) string {
	const most = 3
	if len(nodes) > most {
		return strings.Join(nodes[:most], ", ") + ", …"
	}
	return strings.Join(nodes, ", ")
}

// seedMessage returns what the seeds have still to resolve and to pull.
func (in statusInput) seedMessage(counts nodeCounts) string {
	var text string
	if counts.unresolved > 0 {
		text += fmt.Sprintf("; %s to be resolved", quantity(counts.unresolved, "image is", "images are"))
	}
	if counts.onNoNode > 0 {
		text += fmt.Sprintf("; %s on the way to a first node", quantity(counts.onNoNode, "image is", "images are"))
	}
	return text
}

// writeFailureMessage returns the first desired node whose NodeImageSet could not be written, and the
// API server's reason; empty if there is none. The text of an error may differ each time, and a
// message that changes would be written again and again.
func (in statusInput) writeFailureMessage() string {
	for _, name := range in.outcome.Nodes {
		if err, ok := in.setErrors[name]; ok {
			reason := string(apierrors.ReasonForError(err))
			if reason == "" {
				reason = "the API server could not be reached"
			}
			return fmt.Sprintf("the NodeImageSet of node %q could not be written: %s", name, reason)
		}
	}
	return ""
}

// degradedCondition returns the Degraded condition: what is worse than the spec asks for.
func (in statusInput) degradedCondition(counts nodeCounts) metav1.Condition {
	condition := metav1.Condition{
		Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonAsExpected, Message: "nothing to report",
	}
	if in.prefetch.blocker != nil {
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
	if counts.failed > 0 {
		add(v1alpha1.ReasonNodeFailures, fmt.Sprintf("%s failed%s", quantity(counts.failed, "node", "nodes"), reasonList(counts.final)))
	}
	if counts.retrying > 0 {
		add(v1alpha1.ReasonNodeFailures, fmt.Sprintf("%s trying again%s", quantity(counts.retrying, "node is", "nodes are"), reasonList(counts.retried)))
	}
	if in.outcome.WithoutMirror {
		add(v1alpha1.ReasonMirrorUnavailable, "the mirror served nothing, so nodes pull from the upstream registry, one after the other: "+
			"check that Spegel runs and that hosts.toml on the nodes names it")
	}
	if missing := in.outcome.MissingReplicas; missing > 0 {
		add(v1alpha1.ReasonTooFewNodes, fmt.Sprintf("spec.replicas asks for %s more than match; all that match are used",
			quantity(missing, "node", "nodes")))
	}
	if left := len(in.outcome.LeftOutSecrets); left > 0 {
		add(v1alpha1.ReasonPullSecretsLeftOut, fmt.Sprintf("spec.imagePullSecrets: %s not used everywhere, beginning with %q: a node is given 64 for one image, "+
			"and ImagePrefetches of the same image that come first by namespace and name have as many",
			quantity(left, "is", "are"), in.outcome.LeftOutSecrets[0]))
	}
	if reason != "" {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, reason, strings.Join(parts, "; ")
	}
	return condition
}

// reasonList returns the distinct reasons of failures, sorted, in parentheses; empty without failures.
func reasonList(failures []v1alpha1.NodeFailure) string {
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

// quantity returns a number with its noun.
func quantity[N int | int32](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
