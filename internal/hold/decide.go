// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"cmp"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/duration"
)

// Outcome names the rule that decided, by the number that it has in docs/gate.md.
type Outcome string

const (
	// OutcomeUngated (rule 1): the Deployment names no ImagePrefetch, or skips the gate.
	OutcomeUngated Outcome = "Ungated"
	// OutcomeKnown (rule 2): its images were let through on it before.
	OutcomeKnown Outcome = "Known"
	// OutcomeOwnerPaused (rule 3): its owner paused it.
	OutcomeOwnerPaused Outcome = "OwnerPaused"
	// OutcomeReady (rule 4): the ImagePrefetch is Ready and has all its images.
	OutcomeReady = Outcome(CauseReady)
	// OutcomeEvidence (rule 4): the nodes that its Pods can run on have its images.
	OutcomeEvidence = Outcome(CauseEvidence)
	// OutcomeNoMatchingNodes (rule 4): no node matches its Pods, so there is nothing to wait for.
	OutcomeNoMatchingNodes = Outcome(CauseNoMatchingNodes)
	// OutcomeDenied (rule 4): a policy denies the ImagePrefetch, so waiting cannot help.
	OutcomeDenied = Outcome(CauseDenied)
	// OutcomeHeld (rule 5): it waits.
	OutcomeHeld Outcome = "Held"
	// OutcomeRejected: an annotation was set to what cannot be understood.
	OutcomeRejected Outcome = "Rejected"
)

// Outcomes are all there are.
var Outcomes = []Outcome{
	OutcomeUngated, OutcomeKnown, OutcomeOwnerPaused, OutcomeReady, OutcomeEvidence, OutcomeNoMatchingNodes,
	OutcomeDenied, OutcomeHeld, OutcomeRejected,
}

// clockSkew bounds how far a held-at of this very request may be from now: another
// replica may have written it, in the first round of webhooks.
const clockSkew = time.Minute

// Write is a Deployment being written.
type Write struct {
	// Old is what is stored; nil on creation.
	Old *appsv1.Deployment
	// New is what shall be stored.
	New *appsv1.Deployment
	// Prefetch is what New names; nil if there is none of that name.
	Prefetch *v1alpha1.ImagePrefetch
	// Cluster is what evidence is read from. It may be left empty where NeedsCluster
	// reports false.
	Cluster Cluster
	// Now is when a hold begins if one begins.
	Now time.Time
}

// NeedsCluster reports whether the decision goes by nodes at all. Most writes that the
// webhook is asked about do not: they are not gated, or bring nothing new.
func (w Write) NeedsCluster() bool {
	settings, _ := SettingsOf(w.New)
	_, is := w.marks()
	return settings.Gated && !is.released.include(ImagesOf(&w.New.Spec.Template.Spec).Hash()) && (is.held() || !is.paused)
}

// Decision is what becomes of a write.
type Decision struct {
	Outcome Outcome
	// Rejected has the reasons why it is not to be stored at all.
	Rejected field.ErrorList
	// Patch is what the gate changes about it.
	Patch []Operation
	// Notices are for events on the Deployment, once it is stored.
	Notices []Notice
	// Warnings are for the client.
	Warnings []string
}

// Decide says what becomes of a write. Deciding again about its own result changes
// nothing, so that webhooks may be called repeatedly.
func Decide(w Write) Decision {
	if !w.New.DeletionTimestamp.IsZero() {
		return Decision{Outcome: OutcomeUngated}
	}
	settings, wrong := SettingsOf(w.New)
	if introduced := w.introduced(wrong); len(introduced) > 0 {
		return Decision{Outcome: OutcomeRejected, Rejected: introduced}
	}
	was, is := w.marks()
	outcome, verdict := w.outcome(settings, was, is)
	next := w.next(outcome, was, is)
	decision := Decision{Outcome: outcome, Patch: patchTo(w.New, next), Notices: w.notices(settings, outcome, verdict, was, next)}
	if settings.Gated {
		decision.Warnings = w.warnings(settings, wrong, outcome, verdict)
	}
	return decision
}

// marks returns the marks of the stored object, and those that the new one should have. Marks
// that the write dropped by replacing the whole object are restored, and marks that it may not
// set are removed.
func (w Write) marks() (was, is marks) {
	is = marksOf(w.New)
	if w.Old == nil {
		is.released = nil // copied from another Deployment or a backup: here nothing was let through yet
		return was, is
	}
	was = storedMarks(w.Old)
	// An undo restores older annotations, and a replacement none.
	is.released = was.released.with(is.released...)
	if !was.paused || hasPods(w.Old) {
		// It was rolled out, gated or not: under skip, or before Sluice was there.
		is.released = releases{ImagesOf(&w.Old.Spec.Template.Spec).Hash()}.with(is.released...)
	}
	switch {
	case was.held() && is.paused && w.ownerPauses():
		is.hold = ""
	case was.held() && is.paused:
		is.hold = cmp.Or(is.hold, was.hold)
	case was.paused && !was.held() && !w.heldByThisWrite(is):
		is.hold = "" // the owner's pause does not become ours because someone sets our label
	}
	return was, is
}

// hasPods reports whether a Deployment has Pods of its template: one that its owner pauses may have.
func hasPods(d *appsv1.Deployment) bool {
	return d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas > 0
}

// heldByThisWrite reports whether an earlier call for the same write, in the first round
// of webhooks, has begun the hold. Another webhook may have changed the images since, so
// the hash need not be theirs: it is told by a time that this very write brought.
func (w Write) heldByThisWrite(is marks) bool {
	at, err := time.Parse(time.RFC3339, is.heldAt)
	brought := w.Old == nil || w.Old.Labels[v1alpha1.HoldLabel] != is.hold || w.Old.Annotations[v1alpha1.HeldAtAnnotation] != is.heldAt
	return err == nil && is.hold != "" && brought && w.Now.Sub(at).Abs() < clockSkew
}

// outcome finds the rule that applies. The verdict is what rules 4 and 5 go by.
func (w Write) outcome(settings Settings, was, is marks) (Outcome, verdict) {
	hash := ImagesOf(&w.New.Spec.Template.Spec).Hash()
	switch {
	case !settings.Gated:
		return OutcomeUngated, verdict{}
	case is.released.include(hash):
		return OutcomeKnown, verdict{}
	case is.paused && !is.held():
		return OutcomeOwnerPaused, verdict{} // what is there when it is resumed counts
	}
	var heldAt time.Time
	if was.held() && was.hold == hash {
		heldAt, _ = time.Parse(time.RFC3339, was.heldAt)
	}
	verdict := judge(&w.New.Spec.Template, settings, w.Prefetch, w.Cluster, heldAt)
	if verdict.cause != "" {
		return Outcome(verdict.cause), verdict
	}
	return OutcomeHeld, verdict // new images, or resumed, or created: what runs already is known
}

// next are the marks that an outcome leaves.
func (w Write) next(outcome Outcome, was, is marks) marks {
	hash := ImagesOf(&w.New.Spec.Template.Spec).Hash()
	if outcome == OutcomeHeld {
		return marks{paused: true, hold: hash, heldAt: w.heldAt(hash, was, is), released: is.released}
	}
	next := marks{paused: is.paused && !is.held(), released: is.released}
	switch outcome {
	case OutcomeUngated:
		next.released = releasesIn(w.New)
	case OutcomeOwnerPaused:
	default:
		next.released = releases{hash}.with(is.released...)
	}
	return next
}

// heldAt is when the hold of these images began: the stored time if it goes on, that
// of an earlier call for the same write if there was one, now otherwise. A time that
// was copied along with a manifest is neither.
func (w Write) heldAt(hash string, was, is marks) string {
	if was.held() && was.hold == hash {
		if _, err := time.Parse(time.RFC3339, was.heldAt); err == nil {
			return was.heldAt
		}
	}
	if w.heldByThisWrite(is) {
		return is.heldAt
	}
	return w.Now.UTC().Format(time.RFC3339)
}

// introduced are the errors that this write brings. One that was stored before must
// not be in the way of other changes.
func (w Write) introduced(wrong field.ErrorList) field.ErrorList {
	if w.Old == nil || len(wrong) == 0 {
		return wrong
	}
	_, stored := SettingsOf(w.Old)
	known := make(map[string]bool, len(stored))
	for _, err := range stored {
		known[err.Error()] = true
	}
	var introduced field.ErrorList
	for _, err := range wrong {
		if !known[err.Error()] {
			introduced = append(introduced, err)
		}
	}
	return introduced
}

func (w Write) warnings(settings Settings, wrong field.ErrorList, outcome Outcome, verdict verdict) []string {
	var warnings []string
	for _, err := range wrong {
		warnings = append(warnings, fmt.Sprintf("%v; the default holds", err))
	}
	switch {
	case outcome == OutcomeHeld:
		warnings = append(warnings, w.heldWarning(settings, verdict.wait))
	case verdict.cause == CauseNoMatchingNodes || verdict.cause == CauseDenied:
		warnings = append(warnings, "the rollout is not held: "+verdict.explain())
	case outcome == OutcomeOwnerPaused && w.Old != nil && storedMarks(w.Old).held():
		warnings = append(warnings, "this Deployment was held by Sluice and is now paused by you: resume it when it may roll out")
	}
	if unselected := verdict.unselected(settings.Prefetch); unselected != "" {
		warnings = append(warnings, unselected)
	}
	return append(warnings, w.pullWarnings()...)
}

func (w Write) heldWarning(settings Settings, wait *Wait) string {
	verb := "held"
	if w.Old != nil && w.Old.Spec.Paused && !w.New.Spec.Paused {
		verb = "not resumed but held"
	}
	until := "without end"
	switch {
	case settings.Timeout > 0 && settings.OnTimeout == OnTimeoutRelease:
		until = "for at most " + duration.Format(settings.Timeout)
	case settings.Timeout > 0:
		until = fmt.Sprintf("even after the %s timeout", duration.Format(settings.Timeout))
	}
	scaled := ""
	if w.New.Spec.Replicas != nil && *w.New.Spec.Replicas == 0 {
		// The Deployment controller scales up the ReplicaSet of the template if there is one,
		// paused or not.
		scaled = "; it is scaled to zero: should these images have run before, scaling it up starts them all the same"
	}
	return fmt.Sprintf("the rollout is %s (%s): %s%s; to let it go now, annotate the Deployment with %s=%s",
		verb, until, wait.Message, scaled, v1alpha1.GateAnnotation, v1alpha1.GateSkip)
}
