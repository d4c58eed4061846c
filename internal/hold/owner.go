// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"encoding/json"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// ownerPauses reports whether a write to a held Deployment, which stays paused, pauses it
// on behalf of its owner. The value is true already, so it shows only in what comes
// with it:
//
//   - a client-side apply records a manifest that now says paused: true;
//   - a server-side apply comes to own the field, which it did not before.
//
// A write that has lost our marks means no pause, even if it has lost both: a program that
// reads the Deployment, puts its own labels and annotations in the place of all others and
// writes it back does the same. What was lost is put back.
//
// When the API server calls again within one request, because another webhook changed
// the object after us, a server-side apply whose manifest has just gained paused: false
// looks like the last case. The pause then becomes the owner's, with a warning, and
// the next apply of that manifest ends it.
func (w Write) ownerPauses() bool {
	return appliedPause(w.New) && !appliedPause(w.Old) || ownsPause(w.New) > ownsPause(w.Old)
}

// appliedPause reports whether the manifest that kubectl last applied says paused: true, as a
// manifest of its owner's. What was read from a held Deployment says so as well: kubectl replace, too,
// records the whole object that it writes.
func appliedPause(d *appsv1.Deployment) bool {
	var applied struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Paused bool `json:"paused"`
		} `json:"spec"`
	}
	text := d.Annotations[corev1.LastAppliedConfigAnnotation]
	if text == "" || json.Unmarshal([]byte(text), &applied) != nil {
		return false
	}
	_, labelled := applied.Metadata.Labels[v1alpha1.HoldLabel]
	_, dated := applied.Metadata.Annotations[v1alpha1.HeldAtAnnotation]
	read := labelled || dated || applied.Metadata.UID != "" || applied.Metadata.ResourceVersion != ""
	return applied.Spec.Paused && !read
}

// optsOutPaused reports whether the owner of a held Deployment, who opts out of the gate,
// wants it paused all the same. The webhook is not asked about who opts out, so this
// shows only in what is stored: the last client-side manifest says paused: true, or one
// server-side manifest has both the way out and spec.paused, which is then as that
// manifest says.
func optsOutPaused(d *appsv1.Deployment) bool {
	return appliedPause(d) || slices.ContainsFunc(d.ManagedFields, func(entry metav1.ManagedFieldsEntry) bool {
		fields := appliedFields(entry)
		return fields.paused() && fields.optsOut()
	})
}

// ownsPause is the number of server-side appliers whose manifest has spec.paused.
func ownsPause(d *appsv1.Deployment) int {
	var owners int
	for _, entry := range d.ManagedFields {
		if appliedFields(entry).paused() {
			owners++
		}
	}
	return owners
}

// ownedFields are those of an applier, as far as the gate goes by them.
type ownedFields struct {
	Metadata struct {
		Annotations map[string]json.RawMessage `json:"f:annotations"`
		Labels      map[string]json.RawMessage `json:"f:labels"`
	} `json:"f:metadata"`
	Spec map[string]json.RawMessage `json:"f:spec"`
}

// paused reports whether the manifest has spec.paused, as a manifest of the owner's. One with a mark
// of ours was read from a held Deployment.
func (f ownedFields) paused() bool {
	_, paused := f.Spec["f:paused"]
	_, labelled := f.Metadata.Labels["f:"+v1alpha1.HoldLabel]
	_, dated := f.Metadata.Annotations["f:"+v1alpha1.HeldAtAnnotation]
	return paused && !labelled && !dated
}

func (f ownedFields) optsOut() bool {
	_, ok := f.Metadata.Annotations["f:"+v1alpha1.GateAnnotation]
	return ok
}

// appliedFields are those that a server-side applier owns; none if the entry is not one's.
func appliedFields(entry metav1.ManagedFieldsEntry) (fields ownedFields) {
	if entry.Operation != metav1.ManagedFieldsOperationApply || entry.FieldsV1 == nil {
		return ownedFields{}
	}
	if json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields) != nil {
		return ownedFields{}
	}
	return fields
}
