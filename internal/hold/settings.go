// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// DefaultHoldTimeout is how long a rollout is held where its Deployment does not say.
const DefaultHoldTimeout = 10 * time.Minute

// OnTimeout is what happens when the hold timeout has run out.
type OnTimeout string

const (
	// OnTimeoutRelease lets the rollout go: its Pods pull for themselves.
	OnTimeoutRelease OnTimeout = "Release"
	// OnTimeoutHold goes on holding, and says so in an Event.
	OnTimeoutHold OnTimeout = "Hold"
)

// Settings are what the annotations of a Deployment ask of the gate.
type Settings struct {
	// Gated reports whether rollouts wait for an ImagePrefetch at all.
	Gated bool
	// Prefetch is its name, in the Deployment's namespace.
	Prefetch string
	// Timeout is how long a rollout is held at most; 0 is for ever.
	Timeout time.Duration
	// OnTimeout says what happens then.
	OnTimeout OnTimeout
}

// deadline is when a hold that began at heldAt times out; zero if it does not.
func (s Settings) deadline(heldAt time.Time) time.Time {
	if s.Timeout == 0 {
		return time.Time{}
	}
	return heldAt.Add(s.Timeout)
}

// SettingsOf reads the annotations of a Deployment. Where one cannot be understood
// its default holds, and the error says what to write.
func SettingsOf(object metav1.Object) (Settings, field.ErrorList) {
	annotations := object.GetAnnotations()
	settings := Settings{Timeout: DefaultHoldTimeout, OnTimeout: OnTimeoutRelease}
	name, found := annotations[v1alpha1.PrefetchAnnotation]
	if !found {
		return settings, nil
	}
	settings.Prefetch = name
	settings.Gated = annotations[v1alpha1.GateAnnotation] != v1alpha1.GateSkip

	var wrong field.ErrorList
	reject := func(key, says string) {
		wrong = append(wrong, field.Invalid(annotationPath(key), annotations[key], says))
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		reject(v1alpha1.PrefetchAnnotation, fmt.Sprintf("write the name of an ImagePrefetch in the namespace of the Deployment, or remove the annotation (%s)",
			strings.Join(problems, "; ")))
	}
	if text, ok := annotations[v1alpha1.HoldTimeoutAnnotation]; ok {
		timeout, err := time.ParseDuration(text)
		if err != nil || timeout < 0 {
			reject(v1alpha1.HoldTimeoutAnnotation, `write a duration with its unit, such as "90s", "10m" or "1h30m", or "0" to hold without end`)
		} else {
			settings.Timeout = timeout
		}
	}
	if text, ok := annotations[v1alpha1.OnTimeoutAnnotation]; ok {
		switch OnTimeout(text) {
		case OnTimeoutRelease, OnTimeoutHold:
			settings.OnTimeout = OnTimeout(text)
		default:
			reject(v1alpha1.OnTimeoutAnnotation, `write "Release" or "Hold"`)
		}
	}
	if text, ok := annotations[v1alpha1.GateAnnotation]; ok && text != v1alpha1.GateSkip {
		reject(v1alpha1.GateAnnotation, `write "skip" to let every rollout through, or remove the annotation to gate them`)
	}
	return settings, wrong
}

func annotationPath(key string) *field.Path {
	return field.NewPath("metadata", "annotations").Key(key)
}
