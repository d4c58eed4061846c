// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// forgedLabel is that of no images.
const forgedLabel = "0123456789abcdef"

// edits are what people and programs do to a Deployment.
var edits = map[string]edit{
	"run A":             runs(imageA),
	"run B":             runs(imageB),
	"run C":             runs(imageC),
	"run B by digest":   runs(at("ghcr.io/org/app", imageB)),
	"select our nodes":  func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"pool": "ours"} },
	"select all nodes":  func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = nil },
	"hold for ever":     annotate(v1alpha1.OnTimeoutAnnotation, "Hold"),
	"hold for 90 s":     annotate(v1alpha1.HoldTimeoutAnnotation, "90s"),
	"hold without end":  annotate(v1alpha1.HoldTimeoutAnnotation, "0"),
	"change env":        func(d *appsv1.Deployment) { environment(d.Spec.Template.Spec.Containers[0].Image + "!")(d) },
	"add an init image": func(d *appsv1.Deployment) { d.Spec.Template.Spec.InitContainers = containers(imageC) },
	"mount an image": func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: imageB}}}}
	},
	"scale":             func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32) },
	"pause":             paused(true),
	"resume":            paused(false),
	"skip":              annotate(v1alpha1.GateAnnotation, "skip"),
	"stop skipping":     dropAnnotation(v1alpha1.GateAnnotation),
	"gate":              annotate(v1alpha1.PrefetchAnnotation, "app"),
	"ungate":            dropAnnotation(v1alpha1.PrefetchAnnotation),
	"replace":           replaced,
	"replace, paused":   func(d *appsv1.Deployment) { replaced(d); paused(true)(d) },
	"overwrite labels":  func(d *appsv1.Deployment) { d.Labels = map[string]string{"app": "x"} },
	"forge the label":   label(forgedLabel),
	"forget released":   dropAnnotation(v1alpha1.ReleasedAnnotation),
	"undo to A":         func(d *appsv1.Deployment) { runs(imageA)(d); annotate(v1alpha1.ReleasedAnnotation, hashOf(imageA))(d) },
	"touch held-at":     annotate(v1alpha1.HeldAtAnnotation, "2040-01-01T00:00:00Z"),
	"drop all metadata": func(d *appsv1.Deployment) { d.Labels, d.Annotations = nil, nil },
}

var editNames = slices.Sorted(maps.Keys(edits))

// history is one Deployment, its ImagePrefetch, the nodes and the time.
type history struct {
	stored   *appsv1.Deployment
	prefetch *v1alpha1.ImagePrefetch
	truth    []truth // of the nodes
	now      time.Time
	// letThrough are the sets of images that ran, or were let through, on this Deployment. known are
	// those of them that came while it was gated, which Sluice must not have forgotten.
	letThrough, known map[string]bool
	labels            map[string]string // of holds, by set of images
}

// truth is what is so of a node, from which its API objects are made.
type truth struct {
	ready, ours, uncovered, cordoned, tainted bool
	// silent is an agent of which nothing can be had.
	silent bool
	// unasked reports that nobody asks the node for images that it neither has nor gave up.
	unasked bool
	// createdAt is when the node registered, and joinedAt when it was asked for the images that
	// it lacks.
	createdAt, joinedAt time.Time
	// has are the images that are on the node, gaveUp those that its agent failed to bring.
	has, gaveUp map[string]bool
}

func drawTruth(t *rapid.T, now time.Time) truth {
	node := truth{
		ready: rapid.Bool().Draw(t, "ready"), ours: rapid.Bool().Draw(t, "ours"), uncovered: rarely(t, "uncovered"),
		cordoned: rarely(t, "cordoned"), tainted: rarely(t, "tainted"), silent: rarely(t, "silent"), unasked: rapid.Bool().Draw(t, "unasked"),
		createdAt: now.Add(-time.Duration(rapid.IntRange(0, 900).Draw(t, "age")) * time.Second),
		joinedAt:  now.Add(-time.Duration(rapid.IntRange(0, 900).Draw(t, "asked for")) * time.Second),
		has:       map[string]bool{}, gaveUp: map[string]bool{},
	}
	for _, image := range []string{imageA, imageB, imageC} {
		switch rapid.IntRange(0, 3).Draw(t, image) {
		case 0, 1:
			node.has[image] = true
		case 2:
			node.gaveUp[image] = true
		}
	}
	return node
}

func rarely(t *rapid.T, what string) bool { return rapid.IntRange(0, 4).Draw(t, what) == 0 }

func (w *history) cluster() Cluster {
	var nodes []Node
	for i, is := range w.truth {
		labels := map[string]string{"pool": "other"}
		if is.ours {
			labels = map[string]string{"pool": "ours"}
		}
		n := node(fmt.Sprintf("node-%d", i), has(slices.Collect(maps.Keys(is.has))...), failed(slices.Collect(maps.Keys(is.gaveUp))...))
		n.Ready, n.Labels, n.Uncovered, n.CreatedAt = is.ready, labels, is.uncovered, is.createdAt
		n.Unschedulable, n.Down = is.cordoned, is.silent
		if is.tainted {
			n.Taints = []corev1.Taint{{Key: "team", Effect: corev1.TaintEffectNoSchedule}}
		}
		for _, image := range []string{imageA, imageB, imageC} {
			if !is.has[image] && !is.gaveUp[image] && !is.unasked {
				knows(Image{Name: image, Digest: digestOf(image), JoinedAt: is.joinedAt})(&n)
			}
		}
		nodes = append(nodes, n)
	}
	cluster := Cluster{Nodes: nodes}
	if w.prefetch != nil {
		cluster.Prefetches = []*v1alpha1.ImagePrefetch{w.prefetch}
	}
	return cluster
}

// mayRollOut says, from the truth alone, why a rollout of images may begin in a Deployment
// held since a time; empty if it may not.
func (w *history) mayRollOut(d *appsv1.Deployment, heldAt time.Time) string {
	needed := neededBy(&d.Spec.Template.Spec)
	p := w.prefetch
	// What a tag means is known from the ImagePrefetch alone; a digest needs no such knowledge.
	listed := func(image string) bool {
		return p != nil && slices.Contains(p.Spec.Images, v1alpha1.ImageReference(tagged(image)))
	}
	unlisted := slices.ContainsFunc(needed, func(image string) bool { return !listed(image) })
	if p != nil && !unlisted && p.Status.ObservedGeneration == p.Generation && p.Status.Conditions[0].Status == metav1.ConditionTrue {
		return "its ImagePrefetch is Ready"
	}
	matching, awaited, complete, gaveUp := 0, 0, 0, 0
	for _, is := range w.truth {
		if d.Spec.Template.Spec.NodeSelector != nil && !is.ours || is.tainted {
			continue
		}
		matching++
		if !is.ready || is.uncovered || is.cordoned {
			continue
		}
		lacks := func(image string) bool { return !is.has[tagged(image)] || !listed(image) && tagged(image) == image }
		// One that it has, under a tag that nobody knows the meaning of, does not come.
		comesLater := func(image string) bool {
			return !lacks(image) || !is.unasked && is.joinedAt.After(heldAt) && !is.gaveUp[tagged(image)] && !is.has[tagged(image)]
		}
		switch {
		case !slices.ContainsFunc(needed, lacks):
			awaited, complete = awaited+1, complete+1
		case is.createdAt.After(heldAt), !slices.ContainsFunc(needed, func(image string) bool { return !comesLater(image) }):
		case is.silent, slices.ContainsFunc(needed, func(image string) bool { return is.gaveUp[tagged(image)] }):
			awaited, gaveUp = awaited+1, gaveUp+1
		default:
			return ""
		}
	}
	switch {
	case matching == 0:
		return "no node matches"
	case complete == 0:
		return ""
	case gaveUp == 0, wishesOf(d).releases && gaveUp <= 1: // there are fewer than 20 nodes
		return "the nodes have the image"
	}
	return ""
}

// tagged is an image by the tag that means its digest.
func tagged(image string) string {
	for _, tag := range []string{imageA, imageB, imageC} {
		if image == at("ghcr.io/org/app", tag) {
			return tag
		}
	}
	return image
}

func drawPrefetch(t *rapid.T) *v1alpha1.ImagePrefetch {
	listed := rapid.SampledFrom([][]string{{imageA}, {imageB}, {imageA, imageB}, {imageC}, {imageA, imageB, imageC}}).Draw(t, "listed")
	p := rapid.SampledFrom([]*v1alpha1.ImagePrefetch{nil, prefetch(listed...), pulling(listed...), failing(listed...)}).Draw(t, "prefetch")
	if p == nil {
		return nil
	}
	switch rapid.SampledFrom([]string{"all nodes", "all nodes", "our nodes", "some nodes"}).Draw(t, "selects") {
	case "our nodes":
		p.Spec.NodeSelector = map[string]string{"pool": "ours"}
	case "some nodes":
		p.Spec.Replicas = ptr.To[int32](1)
	}
	if rarely(t, "new") {
		p.Generation++
	}
	return p
}

// checkLabel fails if the label of a hold is not that of its images, or that of others as well.
func (w *history) checkLabel(t *rapid.T, images, label string) {
	if before, seen := w.labels[images]; seen && before != label {
		t.Fatalf("held under %s, and %s had the label %s before", label, images, before)
	}
	for others, of := range w.labels {
		if others != images && of == label {
			t.Fatalf("held under %s, which is the label of %q, not of %q", label, others, images)
		}
	}
	w.labels[images] = label
}

// TestAnyHistory lets people, the gate controller and time act in any order, through
// the webhook, and checks after each write what must always be so.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &history{
			now: now, prefetch: drawPrefetch(t), letThrough: map[string]bool{}, known: map[string]bool{},
			labels: map[string]string{imageA: hashOf(imageA), "no images": forgedLabel},
		}
		for range rapid.IntRange(0, 4).Draw(t, "nodes") {
			w.truth = append(w.truth, drawTruth(t, w.now))
		}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"write", "write", "write", "control", "control", "prefetch", "node", "time"}).Draw(t, "actor") {
			case "write":
				w.write(t)
			case "control":
				w.control(t)
			case "prefetch":
				w.prefetch = drawPrefetch(t)
			case "node":
				if len(w.truth) > 0 && rapid.Bool().Draw(t, "leaves") {
					w.truth = w.truth[1:]
				}
				w.truth = append(w.truth, drawTruth(t, w.now))
			case "time":
				// In steps of two seconds, so that clockSkew does not end between a call and the
				// next for the same write, a second later.
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 350).Draw(t, "two seconds")) * 2 * time.Second)
			}
		}
	})
}

// write makes one to three edits in one request.
func (w *history) write(t *rapid.T) {
	wanted := with(w.stored)
	if wanted == nil {
		wanted = deployment(dropAnnotation(v1alpha1.ReleasedAnnotation))
		wanted.ResourceVersion = "1"
	}
	for _, name := range rapid.SliceOfN(rapid.SampledFrom(editNames), 1, 3).Draw(t, "edits") {
		edits[name](wanted)
	}
	write := Write{Old: w.stored, New: wanted, Prefetch: w.prefetch, Cluster: w.cluster(), Now: w.now}
	decision := Decide(write)
	result, err := apply(wanted, decision.Patch)
	if len(decision.Patch) == 0 {
		result, err = wanted.DeepCopy(), nil
	}
	if err != nil {
		t.Fatalf("apply %v: %v", decision.Patch, err)
	}
	w.checkWrite(t, write, result)

	write.New, write.Now = result, w.now.Add(time.Second)
	if again := Decide(write); len(again.Patch) > 0 {
		t.Fatalf("%s: called again it changes %v", decision.Outcome, again.Patch)
	}
	w.stored = result
}

func (w *history) checkWrite(t *rapid.T, write Write, result *appsv1.Deployment) {
	wants, images, after := wishesOf(result), setOf(result), lookAt(result)
	var before look
	imagesChanged := true
	if write.Old != nil {
		before = lookAt(write.Old)
		imagesChanged = setOf(write.Old) != images
	}

	if !equality.Semantic.DeepEqual(result.Spec.Template, write.New.Spec.Template) {
		t.Fatal("the template was changed")
	}
	if after.held() {
		at, err := time.Parse(time.RFC3339, after.heldAt)
		switch {
		case !wants.gated:
			t.Fatal("held and not gated")
		case w.known[images]:
			t.Fatal("held for what was let through")
		case err != nil || at.After(w.now):
			t.Fatalf("held since %q", after.heldAt)
		}
		w.checkLabel(t, images, after.hold)
	}
	if !after.held() && (after.hold != "" || after.heldAt != "") {
		t.Fatalf("not held, and marked as if: %s", describe(result))
	}
	if before.held() && after.paused && !after.held() && !said(write) {
		t.Fatal("paused without Sluice, and its owner did not say so")
	}
	if write.Old != nil && before.paused && !before.held() && write.New.Spec.Paused && !after.paused {
		t.Fatal("the owner's pause was undone")
	}
	if write.New.Spec.Paused && !before.held() && write.Old != nil && write.New.Labels[v1alpha1.HoldLabel] == "" && (!after.paused || after.held()) {
		t.Fatal("a pause that its owner wrote was taken")
	}
	if write.Old != nil && !before.paused && !imagesChanged && !write.New.Spec.Paused && after.paused {
		t.Fatal("a running rollout was frozen")
	}
	if write.Old != nil && strings.Contains(write.New.Annotations[v1alpha1.ReleasedAnnotation], hashOf(imageA)) {
		w.letThrough[imageA] = true // an undo, or an owner who knows how to skip as well
	}
	starts := write.Old == nil || imagesChanged || before.paused
	if !after.paused && wants.gated && starts && !w.letThrough[images] {
		heldAt := w.now
		if at, err := time.Parse(time.RFC3339, before.heldAt); err == nil && !imagesChanged {
			heldAt = at
		}
		if w.mayRollOut(result, heldAt) == "" {
			t.Fatal("a rollout began without its images")
		}
	}
	if !wants.gated {
		clear(w.known) // of what is not gated Sluice keeps no record
	}
	if !after.paused {
		w.letThrough[images], w.known[images] = true, true
	}
}

// control has the gate controller look at the Deployment, if it bears the label.
func (w *history) control(t *rapid.T) {
	if w.stored == nil {
		return
	}
	if _, marked := w.stored.Labels[v1alpha1.HoldLabel]; !marked {
		return
	}
	before, wants, images := lookAt(w.stored), wishesOf(w.stored), setOf(w.stored)
	heldAt, err := time.Parse(time.RFC3339, before.heldAt)
	if before.held() && err != nil {
		t.Fatalf("held since %q", before.heldAt)
	}
	timedOut := before.held() && wants.letsGo(heldAt, w.now)
	step := Next(w.stored, w.prefetch, w.cluster(), w.now)
	if len(step.Patch) == 0 {
		if step.End != "" {
			t.Fatalf("hold ends with %s and nothing is patched", step.End)
		}
		if timedOut {
			t.Fatal("held for longer than its timeout")
		}
		return
	}
	result, err := apply(w.stored, step.Patch)
	if err != nil {
		t.Fatalf("apply %v: %v", step.Patch, err)
	}
	after := lookAt(result)
	if before.paused && !after.paused {
		if wants.gated && w.mayRollOut(result, heldAt) == "" && !timedOut {
			t.Fatal("released without its images, its owner's word or a timeout")
		}
		if !before.held() {
			t.Fatal("the owner's pause was undone")
		}
	}
	if before.held() && after.paused && !after.held() {
		t.Fatal("the controller left a pause behind that is nobody's")
	}
	if !after.paused {
		w.letThrough[images], w.known[images] = true, true
	}
	if again := Decide(Write{Old: w.stored, New: result, Prefetch: w.prefetch, Cluster: w.cluster(), Now: w.now}); len(again.Patch) > 0 {
		t.Fatalf("the webhook would change the release: %v", again.Patch)
	}
	w.stored = result
}
