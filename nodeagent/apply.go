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

// apply takes up a spec. The set's status matters only to a new process, which takes over the
// answers and counts of the last one.
func (a *Agent) apply(set *v1alpha1.NodeImageSet) {
	a.synced.Store(true)
	if set == nil {
		set = &v1alpha1.NodeImageSet{}
	}
	if set.UID == a.uid && set.Generation == a.generation && a.uid != "" {
		return
	}
	delay := acknowledgeDelay
	if set.UID != a.uid {
		a.reporter.reset(time.Now(), set.UID, set.Status)
		a.restoreOutage(set.Status.Conditions)
		delay = transientDelay
	}
	a.uid, a.generation = set.UID, set.Generation
	a.retainDue = true

	wanted := make(map[string]bool, len(set.Spec.ImageSet))
	for _, entry := range set.Spec.ImageSet {
		wanted[entry.Name] = true
		e, ok := a.entries[entry.Name]
		if !ok {
			a.entries[entry.Name], delay = newEntry(entry, set), transientDelay
			continue
		}
		if e.update(entry) {
			delay = transientDelay
		}
	}
	for name, e := range a.entries {
		if !wanted[name] {
			e.removed, delay = true, transientDelay
			if e.attempt != nil {
				e.attempt.abandon()
			}
			a.forget(e)
		}
	}
	a.reporter.writeWithin(time.Now(), delay)
}

// forget drops an image that the spec no longer names, once nothing of it runs.
func (a *Agent) forget(e *entry) {
	if e.removed && !e.checking && e.attempt == nil {
		delete(a.entries, e.spec.Name)
	}
}

// newEntry begins with the status that an earlier process has reported. So no tag is resolved
// twice, and the status does not go back to Pending.
func newEntry(spec v1alpha1.NodeImage, set *v1alpha1.NodeImageSet) *entry {
	e := &entry{spec: spec, needsCheck: true}
	at := slices.IndexFunc(set.Status.Images, func(s v1alpha1.NodeImageStatus) bool { return s.Name == spec.Name })
	if at >= 0 {
		e.status = *set.Status.Images[at].DeepCopy()
		e.answer = answer{digest: digest.Digest(e.status.Digest), requestIDs: e.status.Request, specDigest: digest.Digest(e.status.Digest)}
		if set.Status.ObservedGeneration == set.Generation {
			e.answer.specDigest = digest.Digest(spec.Digest)
		}
	}
	e.status.Name = spec.Name

	ref, err := imageref.Parse(spec.Name)
	if err != nil {
		e.failed, e.final = true, true
		e.status.Reason, e.status.Message = v1alpha1.ReasonPullFailed, statusMessage(err)
		return e
	}
	e.ref = ref
	if want, _ := e.wanted(); e.status.State == v1alpha1.ImagePresent && want == digest.Digest(e.status.Digest) {
		e.present = true // until the check finds it missing
	}
	return e
}

// retain gives the runtime the list of images to pin and to keep, when that may have changed.
func (a *Agent) retain(ctx context.Context) {
	if !a.retainDue || a.retaining || !a.synced.Load() || !a.connected.Load() {
		return
	}
	a.retainDue, a.retaining = false, true
	retained := make([]Retained, 0, len(a.entries))
	for _, e := range a.entries {
		if e.removed || e.ref == (imageref.Reference{}) {
			continue
		}
		want, _ := e.wanted()
		retained = append(retained, Retained{Ref: e.ref, Digest: want, Pinned: pinned(e.spec)})
	}
	a.work.Go(func() {
		err := a.Runtime.Retain(ctx, retained)
		a.post(func() {
			a.retaining = false
			if err != nil {
				a.Log.Error(err, "Failed to set pins")
				a.postAfter(backoff(1), func() { a.retainDue = true })
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
