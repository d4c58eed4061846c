// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// status is the status to report now. A condition that does not change keeps the transition time
// that was written last.
func (a *Agent) status(now time.Time, written *v1alpha1.NodeImageSetStatus) v1alpha1.NodeImageSetStatus {
	status := v1alpha1.NodeImageSetStatus{ObservedGeneration: a.generation}
	for _, e := range a.entries {
		if e.removed {
			continue
		}
		image := e.currentStatus()
		if image.State.Unfinished() {
			status.LastHeartbeatTime = written.LastHeartbeatTime
		}
		status.Images = append(status.Images, image)
	}
	slices.SortFunc(status.Images, byName)

	conditions := []metav1.Condition{readyCondition(status.Images, a.outage)}
	if a.examined { // otherwise the last process's answer stays
		conditions = append(conditions, degradedCondition(a.findings))
	}
	status.Conditions = slices.Clone(written.Conditions)
	for _, c := range conditions {
		c.ObservedGeneration = a.generation
		c.LastTransitionTime = metav1.Time{Time: now.Truncate(time.Second)}
		meta.SetStatusCondition(&status.Conditions, c)
	}
	return status
}

// currentStatus is the entry's part of the status.
func (e *entry) currentStatus() v1alpha1.NodeImageStatus {
	s := e.status
	s.State = e.state()
	want, resolve := e.wanted()
	if want != "" {
		s.Digest = want.String()
	}
	switch {
	case e.ref.Digest() != "":
		s.Request = e.spec.Request // the digest in the name answers each request ID
	case e.answer.digest == "", resolve && s.Digest != e.answer.digest.String():
		s.Request = ""
	case answersAll(e.answer.requestIDs, e.spec.Request):
		s.Request = e.spec.Request
	default:
		s.Request = e.answer.requestIDs
	}
	if e.attempt != nil && !e.present { // the attempt of a present entry only resolves its tag again
		progress := e.attempt.latestProgress()
		s.PulledBytes = progress.PulledBytes
		s.SizeBytes = max(s.SizeBytes, progress.SizeBytes)
		s.Source = sourceOf(e.spec.RegistryPolicy)
		s.StartedAt, s.FinishedAt = timestamp(e.attempt.started), timestamp(e.attempt.receivedAt())
	}
	return s
}

// sourceOf is where a pull under the policy fetches content from, if it has to.
func sourceOf(policy v1alpha1.RegistryPolicy) v1alpha1.ImageSource {
	switch policy {
	case v1alpha1.RegistryPolicyDefault:
		return v1alpha1.SourceUpstream
	case v1alpha1.RegistryPolicyLocal:
		return v1alpha1.SourceLocal
	default:
		return v1alpha1.SourceMirror
	}
}

// readyCondition summarizes the images. Its message has counts alone, so that it changes only with
// them.
func readyCondition(images []v1alpha1.NodeImageStatus, outage *outage) metav1.Condition {
	present, failed := 0, 0
	for _, s := range images {
		switch s.State {
		case v1alpha1.ImagePresent:
			present++
		case v1alpha1.ImageFailed:
			failed++
		}
	}
	c := metav1.Condition{
		Type:    v1alpha1.ConditionReady,
		Status:  metav1.ConditionFalse,
		Message: fmt.Sprintf("%d of %d images are present", present, len(images)),
	}
	switch {
	case outage != nil:
		c.Reason, c.Message = outage.reason, outage.message
	case present == len(images):
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonImagesPresent
	case present+failed == len(images):
		c.Reason = v1alpha1.ReasonImagesFailed
		c.Message += fmt.Sprintf(", %d failed", failed)
	default:
		c.Reason = v1alpha1.ReasonImagesPending
		if failed > 0 {
			c.Message += fmt.Sprintf(", %d failed", failed)
		}
	}
	return c
}
