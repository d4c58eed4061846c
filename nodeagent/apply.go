// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// apply takes up a spec. Of the status only a new process learns anything: what was
// answered and counted before it started.
func (a *Agent) apply(set *v1alpha1.NodeImageSet) {
	a.synced.Store(true)
	if set == nil {
		set = &v1alpha1.NodeImageSet{}
	}
	if set.UID == a.uid && set.Generation == a.generation && a.uid != "" {
		return
	}
	pause := acknowledge
	if set.UID != a.uid {
		a.report.restart(set.UID, set.Status)
		a.recall(set.Status.Conditions)
		pause = settle
	}
	a.uid, a.generation = set.UID, set.Generation
	a.unretained = true

	wanted := make(map[string]bool, len(set.Spec.ImageSet))
	for _, entry := range set.Spec.ImageSet {
		wanted[entry.Name] = true
		i, ok := a.images[entry.Name]
		if !ok {
			a.images[entry.Name], pause = newImage(entry, set), settle
			continue
		}
		if i.set(entry) {
			pause = settle
		}
	}
	for name, i := range a.images {
		if !wanted[name] {
			i.gone, pause = true, settle
			if i.attempt != nil {
				i.attempt.abandon()
			}
			a.forget(i)
		}
	}
	a.report.change(time.Now(), pause)
}

// forget drops an image that the spec no longer names, once nothing of it runs.
func (a *Agent) forget(i *image) {
	if i.gone && !i.checking && i.attempt == nil {
		delete(a.images, i.entry.Name)
	}
}

// newImage starts from what a former process reported, so that nothing is asked
// twice and the status does not go back to the beginning.
func newImage(entry v1alpha1.NodeImage, set *v1alpha1.NodeImageSet) *image {
	i := &image{entry: entry, unchecked: true}
	at := slices.IndexFunc(set.Status.Images, func(s v1alpha1.NodeImageStatus) bool { return s.Name == entry.Name })
	if at >= 0 {
		i.status = *set.Status.Images[at].DeepCopy()
		i.answer = answer{digest: digest.Digest(i.status.Digest), request: i.status.Request, over: digest.Digest(i.status.Digest)}
		if set.Status.ObservedGeneration == set.Generation {
			i.answer.over = digest.Digest(entry.Digest)
		}
	}
	i.status.Name = entry.Name

	ref, err := imageref.Parse(entry.Name)
	if err != nil {
		i.failed, i.final = true, true
		i.status.Reason, i.status.Message = v1alpha1.ReasonPullFailed, message(err)
		return i
	}
	i.ref = ref
	if want, _ := i.wanted(); i.status.State == v1alpha1.ImagePresent && want == digest.Digest(i.status.Digest) {
		i.present = true // until the check says otherwise
	}
	return i
}

// retain tells the runtime what to pin and what to keep, when that may have changed.
func (a *Agent) retain(ctx context.Context) {
	if !a.unretained || a.retaining || !a.synced.Load() || !a.connected.Load() {
		return
	}
	a.unretained, a.retaining = false, true
	retained := make([]Retained, 0, len(a.images))
	for _, i := range a.images {
		if i.gone || i.ref == (imageref.Reference{}) {
			continue
		}
		want, _ := i.wanted()
		retained = append(retained, Retained{Ref: i.ref, Digest: want, Pinned: pinned(i.entry)})
	}
	a.work.Go(func() {
		err := a.Runtime.Retain(ctx, retained)
		a.post(func() {
			a.retaining = false
			if err != nil {
				a.Log.Error(err, "Failed to set pins")
				a.later(backoff(1), func() { a.unretained = true })
			}
		})
	})
}

func timestamp(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t.Truncate(time.Second)}
}
