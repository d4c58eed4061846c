// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// history is what the audit log says became of the soak's Deployments.
type history struct {
	wrongs                  []string
	writes, holds, releases int
	// first are the rollouts of images that were on the nodes and had never run.
	first int
	// evident are those of them that no ImagePrefetch was Ready with: the nodes had them.
	evident int
	// takeovers are the holds that an owner made a pause of their own.
	takeovers int

	stored map[subject]*appsv1.Deployment
	// storedAt is when stored was, and cutShort when a write ended without an answer of which
	// it is not known whether it was stored.
	storedAt map[subject]time.Time
	cutShort map[subject][]time.Time
	// nodes are the states of the nodes, the last one last.
	nodes []nodeStates
	// there are the images that an ImagePrefetch was ever Ready with. They stay.
	there map[subject]map[string]bool
	// heldAt are the times at which holds of a Deployment began, as they are written on it.
	heldAt map[subject]map[string]bool
	// passed are the sets of images that a Deployment was ever let run, by hash, and known
	// those of them that it ran since it was last without the gate, the last one last.
	passed map[subject]map[string]bool
	known  map[subject][]string
}

// readHistory goes through all writes in the order in which they were stored.
func readHistory(file string) *history {
	GinkgoHelper()
	h := &history{stored: map[subject]*appsv1.Deployment{}, storedAt: map[subject]time.Time{}, cutShort: map[subject][]time.Time{}, there: map[subject]map[string]bool{}, heldAt: map[subject]map[string]bool{}, passed: map[subject]map[string]bool{}, known: map[subject][]string{}}
	entries, unanswered := readAudit(file)
	for _, e := range unanswered {
		h.cutShort[e.subject()] = append(h.cutShort[e.subject()], e.StageTimestamp)
	}
	for _, e := range entries {
		switch {
		case e.ObjectRef.Resource == "imageprefetches":
			h.prefetch(e)
		case e.ObjectRef.Resource == "nodes", e.ObjectRef.Resource == "nodeimagesets":
			h.nodeWrite(e)
		case e.Verb == "delete":
			delete(h.stored, e.subject())
		default:
			h.deployment(e)
		}
	}
	return h
}

func (h *history) prefetch(e *entry) {
	GinkgoHelper()
	var prefetch v1alpha1.ImagePrefetch
	Expect(json.Unmarshal(e.ResponseObject, &prefetch)).To(Succeed())
	if !isReady(&prefetch) {
		return
	}
	for _, image := range prefetch.Spec.Images {
		add(h.there, e.subject(), string(image))
	}
}

func (h *history) deployment(e *entry) {
	GinkgoHelper()
	now := &appsv1.Deployment{}
	Expect(json.Unmarshal(e.ResponseObject, now)).To(Succeed())
	if now.Labels["soak"] == "" {
		return
	}
	was, since := h.stored[e.subject()], h.storedAt[e.subject()]
	h.storedAt[e.subject()] = e.StageTimestamp
	if slices.ContainsFunc(h.cutShort[e.subject()], func(at time.Time) bool { return at.After(since) && !at.After(e.StageTimestamp) }) {
		h.stored[e.subject()] = now // what this write found is not known
		add(h.passed, e.subject(), imagesHash(now))
		return
	}
	if was != nil && was.UID != now.UID {
		was = nil
		delete(h.passed, e.subject())
		delete(h.known, e.subject())
	}
	h.stored[e.subject()] = now
	h.writes++
	if e.patchedPause() == "add" {
		h.holds++
	}
	if isHeld(now) {
		add(h.heldAt, e.subject(), now.Annotations[v1alpha1.HeldAtAnnotation])
	}
	h.checkController(e, was, now)
	h.checkOwnersPause(e, was, now)
	h.checkTakeover(e, was, now)
	h.checkRollout(e, was, now)
	h.checkRollback(e, now)
}

// checkRollback looks for a hold of images that ran before, among the last ten sets. What is
// not gated Sluice keeps no record of.
func (h *history) checkRollback(e *entry, now *appsv1.Deployment) {
	const remembered = 10
	hash := imagesHash(now)
	known := h.known[e.subject()]
	switch {
	case !wishOf(now).gated:
		known = nil
	case !now.Spec.Paused:
		known = append(slices.DeleteFunc(known, func(other string) bool { return other == hash }), hash)
		known = known[max(0, len(known)-remembered):]
	case isHeld(now) && slices.Contains(known, hash):
		h.wrong(e, fmt.Sprintf("a rollback was held: %s", marksOf(now)))
	}
	h.known[e.subject()] = known
}

func (h *history) wrong(e *entry, text string) {
	h.wrongs = append(h.wrongs, fmt.Sprintf("%s at version %d, by %s (%s): %s", e.subject(), e.version, e.user(), e.Verb, text))
}

// checkController looks at what Sluice's controller writes: it touches holds alone.
func (h *history) checkController(e *entry, was, now *appsv1.Deployment) {
	switch {
	case e.user() != controllerAccount:
	case h.isOrphan(e, was):
		if !isHeld(now) || now.Labels[v1alpha1.HoldLabel] != imagesHash(now) {
			h.wrong(e, fmt.Sprintf("a hold that had lost its label did not get it back: %s", marksOf(now)))
		}
	case was == nil || was.Labels[v1alpha1.HoldLabel] == "":
		h.wrong(e, fmt.Sprintf("Sluice's controller writes what is not held: before %s, after %s", marksOf(was), marksOf(now)))
	case !equality.Semantic.DeepEqual(was.Spec.Template, now.Spec.Template):
		h.wrong(e, "Sluice's controller changes the template")
	case isHeld(was) && !now.Spec.Paused:
		h.releases++
		if !wishOf(was).gated && (appliedPause(was) || appliers(was, "f:paused", "f:"+v1alpha1.GateAnnotation) > 0) {
			h.wrong(e, "the pause that its owner opted out with was undone")
		}
	}
}

// isOrphan reports whether a Deployment was paused by Sluice and has lost the label: the time at
// which a hold of it began is left.
func (h *history) isOrphan(e *entry, was *appsv1.Deployment) bool {
	return was != nil && was.Spec.Paused && was.Labels[v1alpha1.HoldLabel] == "" && h.heldAt[e.subject()][was.Annotations[v1alpha1.HeldAtAnnotation]]
}

// checkTakeover looks for a pause during a hold, with its label or without, that its owner said in
// one of the ways that docs/gate.md lists, and that did not become the owner's. Where the write opts
// out, the webhook is not asked and the controller ends the hold: see checkController.
func (h *history) checkTakeover(e *entry, was, now *appsv1.Deployment) {
	if !isHeld(was) && !h.isOrphan(e, was) || e.user() == controllerAccount {
		return
	}
	if (!appliedPause(now) || appliedPause(was)) && (!e.saysPaused() || appliers(now, "f:paused") <= appliers(was, "f:paused")) {
		if now.Spec.Paused && !isHeld(now) && !h.isOrphan(e, now) && now.Annotations[v1alpha1.GateAnnotation] != v1alpha1.GateSkip {
			h.wrong(e, fmt.Sprintf("it is paused without Sluice, and its owner did not say so: before %s, after %s", marksOf(was), marksOf(now)))
		}
		return
	}
	h.takeovers++
	if !now.Spec.Paused || isHeld(now) && now.Annotations[v1alpha1.GateAnnotation] != v1alpha1.GateSkip {
		h.wrong(e, fmt.Sprintf("its owner paused it during a hold: before %s, after %s", marksOf(was), marksOf(now)))
	}
}

// appliedPause reports whether the last client-side manifest pauses.
func appliedPause(d *appsv1.Deployment) bool {
	return strings.Contains(d.Annotations[corev1.LastAppliedConfigAnnotation], `"paused":true`)
}

// appliers are how many server-side manifests have all of these fields.
func appliers(d *appsv1.Deployment, fields ...string) (n int) {
	for _, entry := range d.ManagedFields {
		has := entry.Operation == metav1.ManagedFieldsOperationApply
		for _, field := range fields {
			has = has && strings.Contains(string(entry.FieldsV1.GetRawBytes()), `"`+field+`"`)
		}
		if has {
			n++
		}
	}
	return n
}

// checkOwnersPause looks for a pause without our label that Sluice ends, or makes its
// own. Its controller is looked at above; what its webhook changes is in the log.
func (h *history) checkOwnersPause(e *entry, was, now *appsv1.Deployment) {
	if was == nil || !was.Spec.Paused || isHeld(was) || h.isOrphan(e, was) || e.user() == controllerAccount {
		return
	}
	switch {
	case !now.Spec.Paused && e.patchedPause() == "remove":
		h.wrong(e, fmt.Sprintf("the owner's pause was undone: before %s, after %s", marksOf(was), marksOf(now)))
	case isHeld(now) && !e.resumes(was):
		h.wrong(e, fmt.Sprintf("the owner's pause was taken: before %s, after %s; sent %s", marksOf(was), marksOf(now), e.RequestObject))
	}
}

// checkRollout looks for a rollout that begins without its images and without a reason.
func (h *history) checkRollout(e *entry, was, now *appsv1.Deployment) {
	if now.Spec.Paused {
		return
	}
	image := now.Spec.Template.Spec.Containers[0].Image
	hash := imagesHash(now)
	begins := was == nil || was.Spec.Paused || image != was.Spec.Template.Spec.Containers[0].Image
	switch {
	case !begins || !wishOf(now).gated || h.passed[e.subject()][hash] || timedOut(e, was):
	case h.there[e.subject()][image]:
		h.first++
	case h.nodesHave(e, was, now):
		h.first++
		h.evident++
	default:
		h.wrong(e, fmt.Sprintf("a rollout of %s began, which was on no node: before %s, after %s", image, marksOf(was), marksOf(now)))
	}
	add(h.passed, e.subject(), hash)
}

// marksOf are what the gate goes by.
func marksOf(d *appsv1.Deployment) string {
	if d == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s paused=%t hold=%q %v", d.Spec.Template.Spec.Containers[0].Image, d.Spec.Paused, d.Labels[v1alpha1.HoldLabel], d.Annotations)
}

func timedOut(e *entry, was *appsv1.Deployment) bool {
	if !isHeld(was) {
		return false
	}
	since, err := time.Parse(time.RFC3339, was.Annotations[v1alpha1.HeldAtAnnotation])
	return err == nil && wishOf(was).over(since, e.StageTimestamp)
}

func isHeld(d *appsv1.Deployment) bool {
	return d != nil && d.Spec.Paused && d.Labels[v1alpha1.HoldLabel] != ""
}

func add[K comparable](sets map[K]map[string]bool, key K, value string) {
	if sets[key] == nil {
		sets[key] = map[string]bool{}
	}
	sets[key][value] = true
}
