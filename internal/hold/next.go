// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// End is how a hold ended.
type End string

const (
	// EndReady: the ImagePrefetch is Ready and has all images.
	EndReady = End(CauseReady)
	// EndEvidence: the nodes that its Pods can run on have its images.
	EndEvidence = End(CauseEvidence)
	// EndNoMatchingNodes: no node matches its Pods, so there is nothing to wait for.
	EndNoMatchingNodes = End(CauseNoMatchingNodes)
	// EndDenied: a policy denies the ImagePrefetch, so waiting cannot help.
	EndDenied = End(CauseDenied)
	// EndTimedOut: the hold timeout ran out, and OnTimeoutRelease lets go.
	EndTimedOut End = "TimedOut"
	// EndOptedOut: the Deployment no longer asks to be held.
	EndOptedOut End = "OptedOut"
	// EndSetBack: its images were let through on it before.
	EndSetBack End = "SetBack"
	// EndResumed: it is not paused although it bears our label. It rolls out already,
	// past the webhook, and is not frozen; the label goes.
	EndResumed End = "Resumed"
	// EndElsewhere: the hold is not the gate controller's to end: the webhook ended it, its
	// owner took the pause over, or the Deployment was deleted.
	EndElsewhere End = "Elsewhere"
)

// Ends are all there are.
var Ends = []End{
	EndReady, EndEvidence, EndNoMatchingNodes, EndDenied, EndTimedOut, EndOptedOut, EndSetBack, EndResumed, EndElsewhere,
}

// Step is what the gate controller does next about a Deployment that bears the hold label.
type Step struct {
	// End is how the hold ends now; empty while it goes on.
	End End
	// Patch is to be applied to the stored object. It begins with tests of what this
	// step builds on, and fails as a whole if that has changed.
	Patch []Operation
	// Wait is what is missing, also where the hold ends in spite of it.
	Wait *Wait
	// Notices are for events on the Deployment that tell of the end; none while the hold goes on.
	Notices []Notice
	// Lacking is a node that the hold waits for; empty if there is none. As long as StillLacks reports
	// true of it, nothing that happens to nodes ends the hold.
	Lacking    string
	StillLacks func(*Node) bool
	// HeldAt is when the hold began.
	HeldAt time.Time
	// TimedOut says that the hold goes on past its timeout.
	TimedOut bool
	// WakeAt is when to look again if nothing happens before; zero is never.
	WakeAt time.Time
}

// Next says what becomes of a Deployment that bears the hold label. The prefetch is
// what the Deployment names; nil if there is none of that name. Who opted out by
// server-side apply shows only with managed fields: see [NeedsManagedFields].
func Next(d *appsv1.Deployment, prefetch *v1alpha1.ImagePrefetch, cluster Cluster, now time.Time) Step {
	have := storedMarks(d)
	images := ImagesOf(&d.Spec.Template.Spec)
	settings, _ := SettingsOf(d) // where an annotation is broken, its default holds
	step := Step{HeldAt: now}
	at, err := time.Parse(time.RFC3339, have.heldAt)
	if err == nil && at.Before(now.Add(clockSkew)) {
		step.HeldAt = at
	}
	var verdict verdict
	switch {
	case have.paused && have.hold == "": // the label without a value and no other mark: not our doing
		step.End = EndElsewhere
	case !settings.Gated && have.paused && optsOutPaused(d):
		step.End = EndElsewhere
	case !settings.Gated:
		step.End = EndOptedOut
	case !have.paused:
		step.End = EndResumed
	case have.released.include(images.Hash()):
		step.End = EndSetBack
	default:
		verdict = judge(&d.Spec.Template, settings, prefetch, cluster, step.HeldAt)
		step.End, step.Wait = End(verdict.cause), verdict.wait
		step.Lacking, step.StillLacks = verdict.evidence.Lacks, verdict.evidence.stillLacks
	}
	if deadline := settings.deadline(step.HeldAt); step.End == "" && !deadline.IsZero() {
		switch {
		case now.Before(deadline):
			step.WakeAt = deadline
		case settings.OnTimeout == OnTimeoutRelease:
			step.End = EndTimedOut
		default:
			step.TimedOut = true
		}
	}

	if step.End != "" {
		missing := ""
		if step.Wait != nil {
			missing = step.Wait.Message
		}
		step.Notices = append(step.Notices, releaseNotice(step.End, now.Sub(step.HeldAt), settings.Prefetch, verdict.explain(), missing))
		step.Notices = append(step.Notices, verdict.unselectedNotice(settings.Prefetch)...)
	}

	next := marks{paused: true, hold: images.Hash(), heldAt: step.HeldAt.UTC().Format(time.RFC3339), released: have.released}
	switch step.End {
	case "":
	case EndElsewhere:
		next = marks{paused: true, released: have.released}
	case EndOptedOut:
		next = marks{released: have.released}
	default:
		next = marks{released: releases{images.Hash()}.with(have.released...)}
	}
	if patch := patchTo(d, next); len(patch) > 0 {
		step.Patch = append(tests(d, step.End), patch...)
	}
	return step
}

// NeedsManagedFields reports whether [Next] goes by the managed fields of d, which caches
// may have been stripped of.
func NeedsManagedFields(d *appsv1.Deployment) bool {
	settings, _ := SettingsOf(d)
	return !settings.Gated && d.Spec.Paused && !appliedPause(d)
}

// Fits reports whether a step that has a patch was decided on what d is, as far as the
// patch tests it.
func (s Step) Fits(d *appsv1.Deployment) bool {
	want := tests(d, s.End)
	return len(want) < len(s.Patch) && equality.Semantic.DeepEqual(want, s.Patch[:len(want)])
}

// tests are what must still be true of the stored object for the step to be right. The
// webhook keeps the label in step with the images, so the same label means the same
// images. A release because they are there rests on that, on the annotations, in which an
// owner opts out, with or without a pause, past the webhook, and on the nodes that the Pods
// can run on. It goes through however often the Deployment is scaled meanwhile. Everything
// else, or a webhook that was bypassed, needs the object as it was read.
func tests(d *appsv1.Deployment, end End) []Operation {
	have := marksOf(d)
	var patch []Operation
	if have.paused {
		patch = append(patch, Operation{Op: "test", Path: pausedPath, Value: true})
	}
	patch = append(patch, Operation{Op: "test", Path: labelsPath + "/" + escape(v1alpha1.HoldLabel), Value: have.hold})
	judged := end == EndReady || end == EndEvidence || end == EndNoMatchingNodes || end == EndDenied
	if pod := &d.Spec.Template.Spec; judged && have.hold == ImagesOf(pod).Hash() {
		return append(patch, append(placement(pod), Operation{Op: "test", Path: annotationsPath, Value: d.Annotations})...)
	}
	return append(patch, Operation{Op: "test", Path: "/metadata/resourceVersion", Value: d.ResourceVersion})
}

// placement are tests of the fields that say which nodes the Pods can run on. A test for
// nothing passes where the field is not there.
func placement(pod *corev1.PodSpec) []Operation {
	const path = "/spec/template/spec/"
	test := func(field string, set bool, value any) Operation {
		if !set {
			value = nil
		}
		return Operation{Op: "test", Path: path + field, Value: value}
	}
	return []Operation{
		test("nodeName", pod.NodeName != "", pod.NodeName),
		test("nodeSelector", len(pod.NodeSelector) > 0, pod.NodeSelector),
		test("affinity", pod.Affinity != nil, pod.Affinity),
		test("tolerations", len(pod.Tolerations) > 0, pod.Tolerations),
	}
}
