// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// edits are what people and programs do to a Deployment.
var edits = map[string]edit{
	"run A":             runs(imageA),
	"run B":             runs(imageB),
	"run C":             runs(imageC),
	"change env":        func(d *appsv1.Deployment) { environment(d.Spec.Template.Spec.Containers[0].Image + "!")(d) },
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

// world is one Deployment, its ImagePrefetch and the time.
type world struct {
	stored   *appsv1.Deployment
	prefetch *v1alpha1.ImagePrefetch
	now      time.Time
}

func drawPrefetch(t *rapid.T) *v1alpha1.ImagePrefetch {
	listed := rapid.SampledFrom([][]string{{imageA}, {imageB}, {imageA, imageB}, {imageC}, {imageA, imageB, imageC}}).Draw(t, "listed")
	return rapid.SampledFrom([]*v1alpha1.ImagePrefetch{nil, prefetch(listed...), pulling(listed...), failing(listed...)}).Draw(t, "prefetch")
}

// TestAnyHistory lets people, the gate controller and time act in any order, through
// the webhook, and checks after each write what must always be so.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{now: now, prefetch: drawPrefetch(t)}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"write", "write", "write", "control", "control", "prefetch", "time"}).Draw(t, "actor") {
			case "write":
				w.write(t)
			case "control":
				w.control(t)
			case "prefetch":
				w.prefetch = drawPrefetch(t)
			case "time":
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 700).Draw(t, "seconds")) * time.Second)
			}
		}
	})
}

// write makes one to three edits in one request.
func (w *world) write(t *rapid.T) {
	wanted := with(w.stored)
	if wanted == nil {
		wanted = deployment(dropAnnotation(v1alpha1.ReleasedAnnotation))
		wanted.ResourceVersion = "1"
	}
	for _, name := range rapid.SliceOfN(rapid.SampledFrom(editNames), 1, 3).Draw(t, "edits") {
		edits[name](wanted)
	}
	write := Write{Old: w.stored, New: wanted, Prefetch: w.prefetch, Now: w.now}
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

func (w *world) checkWrite(t *rapid.T, write Write, result *appsv1.Deployment) {
	settings, _ := SettingsOf(result)
	images := ImagesOf(&result.Spec.Template.Spec)
	after := marksOf(result)
	var before marks
	imagesChanged := true
	if write.Old != nil {
		before = marksOf(write.Old)
		imagesChanged = ImagesOf(&write.Old.Spec.Template.Spec).Hash() != images.Hash()
	}

	if !equality.Semantic.DeepEqual(result.Spec.Template, write.New.Spec.Template) {
		t.Fatal("the template was changed")
	}
	if after.held() {
		at, err := time.Parse(time.RFC3339, after.heldAt)
		switch {
		case !settings.Gated:
			t.Fatal("held and not gated")
		case after.hold != images.Hash():
			t.Fatal("held under another hash than that of its images")
		case after.hold == after.released:
			t.Fatal("held for what was let through")
		case err != nil || at.After(w.now):
			t.Fatalf("held since %q", after.heldAt)
		}
	}
	if !after.held() && (after.hold != "" || after.heldAt != "") {
		t.Fatalf("not held, and marked as if: %s", describe(result))
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
	if write.Old == nil && settings.Gated && waitFor(images, settings.Prefetch, w.prefetch) != nil && (!after.paused || after.released != "") {
		t.Fatal("created without its images, or with a record of another's")
	}
	if starts := !after.paused && settings.Gated && imagesChanged; starts && waitFor(images, settings.Prefetch, w.prefetch) != nil && after.released != images.Hash() {
		t.Fatal("a rollout began without its images")
	}
	if starts := !after.paused && settings.Gated && before.paused; starts && waitFor(images, settings.Prefetch, w.prefetch) != nil && before.released != images.Hash() &&
		write.New.Annotations[v1alpha1.ReleasedAnnotation] != images.Hash() {
		t.Fatal("a rollout was resumed without its images")
	}
}

// control has the gate controller look at the Deployment, if it bears the label.
func (w *world) control(t *rapid.T) {
	if w.stored == nil {
		return
	}
	if _, marked := w.stored.Labels[v1alpha1.HoldLabel]; !marked {
		return
	}
	before := marksOf(w.stored)
	step := Next(w.stored, w.prefetch, w.now)
	if len(step.Patch) == 0 {
		if step.End != "" {
			t.Fatalf("hold ends with %s and nothing is patched", step.End)
		}
		return
	}
	result, err := apply(w.stored, step.Patch)
	if err != nil {
		t.Fatalf("apply %v: %v", step.Patch, err)
	}
	after := marksOf(result)
	settings, _ := SettingsOf(result)
	images := ImagesOf(&result.Spec.Template.Spec)
	if before.paused && !after.paused {
		deadline := settings.deadline(step.HeldAt)
		timedOut := settings.OnTimeout == OnTimeoutRelease && !deadline.IsZero() && !w.now.Before(deadline)
		if settings.Gated && waitFor(images, settings.Prefetch, w.prefetch) != nil && before.released != images.Hash() && !timedOut {
			t.Fatal("released without its images, its owner's word or a timeout")
		}
		if !before.held() {
			t.Fatal("the owner's pause was undone")
		}
	}
	if again := Decide(Write{Old: w.stored, New: result, Prefetch: w.prefetch, Now: w.now}); len(again.Patch) > 0 {
		t.Fatalf("the webhook would change the release: %v", again.Patch)
	}
	w.stored = result
}
