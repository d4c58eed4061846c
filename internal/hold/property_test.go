// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// edits are what people and programs do to a Deployment.
var edits = map[string]edit{
	"run A":             runs(imageA),
	"run B":             runs(imageB),
	"run C":             runs(imageC),
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
	"forge the label":   label("0123456789abcdef"),
	"forget released":   dropAnnotation(v1alpha1.ReleasedAnnotation),
	"undo to A":         func(d *appsv1.Deployment) { runs(imageA)(d); annotate(v1alpha1.ReleasedAnnotation, hashOf(imageA))(d) },
	"touch held-at":     annotate(v1alpha1.HeldAtAnnotation, "2040-01-01T00:00:00Z"),
	"drop all metadata": func(d *appsv1.Deployment) { d.Labels, d.Annotations = nil, nil },
}

var editNames = slices.Sorted(maps.Keys(edits))

// deployed is one Deployment, its ImagePrefetch and the time. What must be so is worked out
// from what was done to them: nothing of what decides is asked, but for how an image set
// is abbreviated.
type deployed struct {
	stored   *appsv1.Deployment
	prefetch *v1alpha1.ImagePrefetch
	now      time.Time

	ready  bool            // the ImagePrefetch exists, and is Ready as it is
	listed map[string]bool // images that it has
	// passed are the images that were last let through, and heldSince is when the hold of
	// the present ones began.
	passed    string
	heldSince time.Time
	hashes    map[string]string // of sets of images, as they were seen
}

// marks that show on an object, as they are written there.
type shown struct{ hold, heldAt, released string }

func shownOn(d *appsv1.Deployment) shown {
	return shown{d.Labels[v1alpha1.HoldLabel], d.Annotations[v1alpha1.HeldAtAnnotation], d.Annotations[v1alpha1.ReleasedAnnotation]}
}

// isHeld and isGated follow docs/gate.md.
func isHeld(d *appsv1.Deployment) bool { return d.Spec.Paused && d.Labels[v1alpha1.HoldLabel] != "" }

func isGated(d *appsv1.Deployment) bool {
	_, names := d.Annotations[v1alpha1.PrefetchAnnotation]
	return names && d.Annotations[v1alpha1.GateAnnotation] != "skip"
}

// needs are the images of the Pods, each once.
func needs(d *appsv1.Deployment) []string {
	pod := &d.Spec.Template.Spec
	var images []string
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		images = append(images, container.Image)
	}
	for _, volume := range pod.Volumes {
		images = append(images, volume.Image.Reference)
	}
	slices.Sort(images)
	return slices.Compact(images)
}

// imagesOf abbreviates them.
func imagesOf(d *appsv1.Deployment) string { return strings.Join(needs(d), " ") }

// there reports whether all images are on the nodes.
func (h *deployed) there(d *appsv1.Deployment) bool {
	return h.ready && !slices.ContainsFunc(needs(d), func(image string) bool { return !h.listed[image] })
}

// stands reports whether a hash is that of the images. That equal images have equal hashes,
// and different ones different, is seen by the way.
func (h *deployed) stands(t *rapid.T, hash, images string) bool {
	for known, of := range h.hashes {
		if (known == images) != (of == hash) {
			t.Fatalf("%q has the hash %s, and %q has %s", images, hash, known, of)
		}
	}
	h.hashes[images] = hash
	return true
}

// draw makes another ImagePrefetch, or none.
func (h *deployed) draw(t *rapid.T) {
	listed := rapid.SampledFrom([][]string{{imageA}, {imageB}, {imageA, imageB}, {imageC}, {imageA, imageB, imageC}}).Draw(t, "listed")
	h.prefetch, h.ready, h.listed = nil, false, map[string]bool{}
	for _, image := range listed {
		h.listed[image] = true
	}
	switch rapid.SampledFrom([]string{"none", "Ready", "Ready before", "pulling", "failing", "deleted"}).Draw(t, "prefetch") {
	case "Ready":
		h.prefetch, h.ready = prefetch(listed...), true
	case "Ready before": // it was changed, and nobody has looked at it since
		h.prefetch = prefetch(listed...)
		h.prefetch.Generation++
	case "pulling":
		h.prefetch = pulling(listed...)
	case "failing":
		h.prefetch = failing(listed...)
	case "deleted":
		h.prefetch = prefetch(listed...)
		h.prefetch.DeletionTimestamp = &metav1.Time{Time: h.now}
	}
}

// TestAnyHistory lets people, the gate controller and time act in any order, through
// the webhook, and checks after each write what must always be so.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &deployed{now: now, hashes: map[string]string{imageA: hashOf(imageA)}}
		h.draw(t)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"write", "write", "write", "control", "control", "prefetch", "time"}).Draw(t, "actor") {
			case "write":
				h.write(t)
			case "control":
				h.control(t)
			case "prefetch":
				h.draw(t)
			case "time":
				h.now = h.now.Add(time.Duration(rapid.IntRange(1, 700).Draw(t, "seconds")) * time.Second)
			}
		}
	})
}

// write makes one to three edits in one request.
func (h *deployed) write(t *rapid.T) {
	wanted := with(h.stored)
	if wanted == nil {
		wanted = deployment(dropAnnotation(v1alpha1.ReleasedAnnotation))
		wanted.ResourceVersion = "1"
	}
	for _, name := range rapid.SliceOfN(rapid.SampledFrom(editNames), 1, 3).Draw(t, "edits") {
		edits[name](wanted)
	}
	write := Write{Old: h.stored, New: wanted, Prefetch: h.prefetch, Now: h.now}
	decision := Decide(write)
	result, err := apply(wanted, decision.Patch)
	if len(decision.Patch) == 0 {
		result, err = wanted.DeepCopy(), nil
	}
	if err != nil {
		t.Fatalf("apply %v: %v", decision.Patch, err)
	}
	h.checkWrite(t, wanted, result)

	write.New, write.Now = result, h.now.Add(time.Second)
	if again := Decide(write); len(again.Patch) > 0 {
		t.Fatalf("%s: called again it changes %v", decision.Outcome, again.Patch)
	}
	h.store(result)
}

// store notes what a write has come to.
func (h *deployed) store(result *appsv1.Deployment) {
	if isHeld(result) && (h.stored == nil || !isHeld(h.stored) || imagesOf(h.stored) != imagesOf(result)) {
		h.heldSince = h.now
	}
	switch released := shownOn(result).released; {
	case isGated(result) && !result.Spec.Paused:
		h.passed = imagesOf(result)
	case released == "": // dropped where nothing is gated, or never there
		h.passed = ""
	case h.stored == nil || shownOn(h.stored).released != released: // its owner says so
		h.passed = h.named(released)
	}
	h.stored = result
}

// named are the images that a hash stands for; of one that was not seen nobody knows.
func (h *deployed) named(hash string) string {
	for images, of := range h.hashes {
		if of == hash {
			return images
		}
	}
	return "unknown"
}

func (h *deployed) checkWrite(t *rapid.T, wanted, result *appsv1.Deployment) {
	old, images, after := h.stored, imagesOf(result), shownOn(result)
	created := old == nil
	wasPaused := !created && old.Spec.Paused
	wasHeld := !created && isHeld(old)
	changed := created || imagesOf(old) != images
	there := h.there(result)
	passed := h.passed
	if !created && shownOn(wanted).released != "" && shownOn(wanted).released != shownOn(old).released {
		passed = h.named(shownOn(wanted).released) // an undo brings along what was let through then
	}

	if !equality.Semantic.DeepEqual(result.Spec.Template, wanted.Spec.Template) {
		t.Fatal("the template was changed")
	}
	if isHeld(result) {
		at, err := time.Parse(time.RFC3339, after.heldAt)
		switch {
		case !isGated(result):
			t.Fatal("held and not gated")
		case !h.stands(t, after.hold, images):
		case images == passed && !created:
			t.Fatal("held for what was let through")
		case there:
			t.Fatal("held although its images are there")
		case err != nil || at.After(h.now):
			t.Fatalf("held since %q", after.heldAt)
		case wasHeld && !changed && !at.Equal(h.heldSince):
			t.Fatalf("held since %s, and not since %s", at, h.heldSince)
		}
	}
	if !isHeld(result) && (after.hold != "" || after.heldAt != "") {
		t.Fatalf("not held, and marked as if: %s", describe(result))
	}
	if wasPaused && !wasHeld && wanted.Spec.Paused && !result.Spec.Paused {
		t.Fatal("the owner's pause was undone")
	}
	if wanted.Spec.Paused && !wasHeld && !created && shownOn(wanted).hold == "" && (!result.Spec.Paused || isHeld(result)) {
		t.Fatal("a pause that its owner wrote was taken")
	}
	if !created && !wasPaused && !changed && !wanted.Spec.Paused && result.Spec.Paused {
		t.Fatal("a running rollout was frozen")
	}
	if created && isGated(result) && after.released != "" && !there {
		t.Fatal("created with a record of another's")
	}
	if begins := isGated(result) && !result.Spec.Paused && (changed || wasPaused); begins && !there && (created || images != passed) {
		t.Fatalf("a rollout to %s begins without its images", images)
	}
}

// control has the gate controller look at the Deployment, if it bears the label.
func (h *deployed) control(t *rapid.T) {
	const timeout = 10 * time.Minute
	if h.stored == nil {
		return
	}
	if _, marked := h.stored.Labels[v1alpha1.HoldLabel]; !marked {
		return
	}
	step := Next(h.stored, h.prefetch, h.now)
	result := h.stored
	if len(step.Patch) > 0 {
		var err error
		if result, err = apply(h.stored, step.Patch); err != nil {
			t.Fatalf("apply %v: %v", step.Patch, err)
		}
	} else if step.End != "" {
		t.Fatalf("hold ends with %s and nothing is patched", step.End)
	}
	there, set := h.there(h.stored), imagesOf(h.stored) == h.passed
	timedOut := !h.now.Before(h.heldSince.Add(timeout))
	if h.stored.Spec.Paused && !result.Spec.Paused {
		switch {
		case !isHeld(h.stored):
			t.Fatal("the owner's pause was undone")
		case isGated(h.stored) && !there && !set && !timedOut:
			t.Fatal("released without its images, its owner's word or a timeout")
		}
	}
	if isHeld(result) && (there || timedOut) {
		t.Fatalf("still held, although there=%t, timed out=%t", there, timedOut)
	}
	if again := Decide(Write{Old: h.stored, New: result, Prefetch: h.prefetch, Now: h.now}); len(again.Patch) > 0 {
		t.Fatalf("the webhook would change the release: %v", again.Patch)
	}
	h.store(result)
}
