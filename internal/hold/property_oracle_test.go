// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// The property test reads annotations, manifests and images by itself: the code that it checks may read
// them wrongly.

// neededBy are the images of a Pod template: of containers, init containers and volumes.
func neededBy(pod *corev1.PodSpec) []string {
	var images []string
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		images = append(images, c.Image)
	}
	for _, v := range pod.Volumes {
		if v.Image != nil {
			images = append(images, v.Image.Reference)
		}
	}
	return images
}

// setOf names the set of images that a Deployment needs.
func setOf(d *appsv1.Deployment) string {
	images := neededBy(&d.Spec.Template.Spec)
	slices.Sort(images)
	return strings.Join(slices.Compact(images), " ")
}

// wishes are what the annotations of a Deployment ask of the gate, read anew.
type wishes struct {
	gated    bool
	timeout  time.Duration // 0 is for ever
	releases bool          // when the timeout has run out
}

func wishesOf(d *appsv1.Deployment) wishes {
	_, named := d.Annotations[v1alpha1.PrefetchAnnotation]
	w := wishes{
		gated:    named && d.Annotations[v1alpha1.GateAnnotation] != "skip",
		timeout:  10 * time.Minute,
		releases: d.Annotations[v1alpha1.OnTimeoutAnnotation] != "Hold",
	}
	if text, ok := d.Annotations[v1alpha1.HoldTimeoutAnnotation]; ok {
		w.timeout, _ = time.ParseDuration(text) // the edits write no other
	}
	return w
}

// letsGo reports whether a hold that began at a time is to end, whatever is missing.
func (w wishes) letsGo(heldAt, now time.Time) bool {
	return w.releases && w.timeout > 0 && !now.Before(heldAt.Add(w.timeout))
}

// look is what the gate has written on a Deployment, read by the test itself.
type look struct {
	paused       bool
	hold, heldAt string
}

func lookAt(d *appsv1.Deployment) look {
	return look{d.Spec.Paused, d.Labels["sluice.dev/hold"], d.Annotations["sluice.dev/held-at"]}
}

func (l look) held() bool { return l.paused && l.hold != "" }

// said reports whether the owner of a held Deployment says that it is to be paused: by the manifest of
// a client-side apply, or because one more server-side apply has the field.
func said(write Write) bool {
	return manifestPauses(write.New) && !manifestPauses(write.Old) || appliersThatPause(write.New) > appliersThatPause(write.Old)
}

// below is the value below some keys of a document; nil if there is none.
func below(document any, keys ...string) any {
	for _, key := range keys {
		object, _ := document.(map[string]any)
		document = object[key]
	}
	return document
}

// manifestPauses reports whether the manifest that was applied last says paused: true, and was not
// read from the cluster.
func manifestPauses(d *appsv1.Deployment) bool {
	var manifest any
	if json.Unmarshal([]byte(d.Annotations["kubectl.kubernetes.io/last-applied-configuration"]), &manifest) != nil {
		return false
	}
	read := below(manifest, "metadata", "uid") != nil || below(manifest, "metadata", "resourceVersion") != nil ||
		below(manifest, "metadata", "labels", "sluice.dev/hold") != nil || below(manifest, "metadata", "annotations", "sluice.dev/held-at") != nil
	return below(manifest, "spec", "paused") == true && !read
}

// appliersThatPause are those whose server-side apply has the field, and no mark of the gate.
func appliersThatPause(d *appsv1.Deployment) (n int) {
	for _, entry := range d.ManagedFields {
		var fields any
		if entry.Operation != metav1.ManagedFieldsOperationApply || entry.FieldsV1 == nil || json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		read := below(fields, "f:metadata", "f:labels", "f:sluice.dev/hold") != nil || below(fields, "f:metadata", "f:annotations", "f:sluice.dev/held-at") != nil
		if below(fields, "f:spec", "f:paused") != nil && !read {
			n++
		}
	}
	return n
}
