// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Operation is one operation of a JSON patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

const (
	pausedPath      = "/spec/paused"
	labelsPath      = "/metadata/labels"
	annotationsPath = "/metadata/annotations"
)

// marks are the fields of a Deployment that the gate writes. Empty is absent.
type marks struct {
	paused       bool
	hold, heldAt string
	released     releases
}

func marksOf(d *appsv1.Deployment) marks {
	return marks{
		paused:   d.Spec.Paused,
		hold:     d.Labels[v1alpha1.HoldLabel],
		heldAt:   d.Annotations[v1alpha1.HeldAtAnnotation],
		released: releasesIn(d),
	}
}

// held reports whether they are those of a hold.
func (m marks) held() bool { return m.paused && m.hold != "" }

// patchTo is the patch that gives d the marks m; empty if it has them.
func patchTo(d *appsv1.Deployment, m marks) []Operation {
	var patch []Operation
	switch {
	case m.paused && !d.Spec.Paused:
		patch = append(patch, Operation{Op: "add", Path: pausedPath, Value: true})
	case !m.paused && d.Spec.Paused:
		patch = append(patch, Operation{Op: "remove", Path: pausedPath})
	}
	patch = append(patch, patchMap(labelsPath, d.Labels, keyValue{v1alpha1.HoldLabel, m.hold})...)
	return append(patch, patchMap(annotationsPath, d.Annotations,
		keyValue{v1alpha1.HeldAtAnnotation, m.heldAt}, keyValue{v1alpha1.ReleasedAnnotation, m.released.String()})...)
}

// keyValue is a label or an annotation; without a value it is to be absent.
type keyValue struct{ key, value string }

func patchMap(path string, have map[string]string, want ...keyValue) []Operation {
	var patch []Operation
	missing := len(have) == 0 // the path may not be there
	for _, kv := range want {
		value, ok := have[kv.key]
		switch {
		case kv.value == "" && ok:
			patch = append(patch, Operation{Op: "remove", Path: path + "/" + escape(kv.key)})
		case kv.value != "" && missing:
			patch = append(patch, Operation{Op: "add", Path: path, Value: map[string]string{kv.key: kv.value}})
			missing = false
		case kv.value != "" && kv.value != value:
			patch = append(patch, Operation{Op: "add", Path: path + "/" + escape(kv.key), Value: kv.value})
		}
	}
	return patch
}

// escape writes a key as one token of a JSON pointer (RFC 6901).
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
