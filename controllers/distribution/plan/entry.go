// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Progressed reports whether an image has made progress between two sights of its entry: the spec
// asks something else, the registry has answered, or bytes have come. A try that ended and a next
// one that began are no progress, because the registry or the mirror may hang each time.
func Progressed(before, after Entry) bool {
	was, is := before.Status, after.Status
	switch {
	case !sameEntry(before.Wanted, after.Wanted):
		return true
	case was == nil || is == nil:
		return was != is
	case was.Attempts == 0 && is.Attempts > 0, (was.State == v1alpha1.ImagePresent) != (is.State == v1alpha1.ImagePresent):
		return true // it got the slot that it waited for, or it came or was deleted
	}
	return was.Digest != is.Digest || was.Request != is.Request || is.PulledBytes > was.PulledBytes || is.SizeBytes > was.SizeBytes
}

// joinedAt is when the spec says that the node joined; zero if it does not.
func (e Entry) joinedAt() time.Time {
	if e.Wanted == nil || e.Wanted.JoinedAt == nil {
		return time.Time{}
	}
	return e.Wanted.JoinedAt.Time
}

// Failed reports whether the agent has given up. While an agent asks again what a tag means, its
// image stays Present; it has given up once its tries are used up or the registry refuses.
func (e Entry) Failed() bool {
	switch status := e.Status; {
	case status == nil:
		return false
	case status.State != v1alpha1.ImagePresent || status.Reason == "" || !e.unanswered():
		return status.State == v1alpha1.ImageFailed
	default:
		limit := e.Wanted.ImageDownloadRetryLimit
		return v1alpha1.IsRefusal(status.Reason) || limit != nil && status.Attempts > *limit
	}
}

// FailedOnMirror reports whether a node that may not use the upstream gave up because the mirror
// did not serve it.
func (e Entry) FailedOnMirror() bool {
	return e.Failed() && e.Wanted != nil && e.Wanted.RegistryPolicy != v1alpha1.RegistryPolicyDefault &&
		v1alpha1.IsMirrorFailure(e.Status.Reason)
}

// isSeed reports whether the spec, as it is, lets the node use the upstream.
func (e Entry) isSeed() bool {
	return e.Wanted != nil && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyDefault
}

// resolvesTag reports whether the digest is for the node to find out, or was.
func (e Entry) resolvesTag() bool {
	return e.Wanted != nil && (e.Wanted.Digest == "" ||
		e.Wanted.Request != "" && e.Wanted.RegistryPolicy == v1alpha1.RegistryPolicyDefault)
}

// unanswered reports whether the node is to resolve the tag and has not yet. Meanwhile the digest
// in the entry, if there is one, is what the node has and keeps.
func (e Entry) unanswered() bool {
	return e.resolvesTag() && (e.Status == nil || e.Status.Digest == "" || e.Status.Request != e.Wanted.Request)
}

// target is the digest that the node works on: the one that it was told, or that it found itself.
func (e Entry) target() string {
	if e.Wanted.Digest == "" && e.Status != nil || e.resolvesTag() && !e.unanswered() {
		return e.Status.Digest
	}
	return e.Wanted.Digest
}

// presentDigest is the digest that the agent reports as Present.
func (e Entry) presentDigest() string {
	if e.Status == nil || e.Status.State != v1alpha1.ImagePresent {
		return ""
	}
	return e.Status.Digest
}

// lastDigest is the digest that the node has, or else the last that it was told or found out.
func (e Entry) lastDigest() string {
	digest := e.presentDigest()
	switch {
	case digest != "" || e.Wanted == nil:
		return digest
	case e.unanswered():
		return e.Wanted.Digest
	}
	return e.target()
}

// reportsPresent reports whether the agent reports that digest as Present, whatever the spec asks.
func (e Entry) reportsPresent(digest string) bool {
	return e.Status != nil && e.Status.State == v1alpha1.ImagePresent && e.Status.Digest == digest
}

// queued reports whether the agent knows of the image and has not begun with it.
func (e Entry) queued() bool { return e.Status != nil && e.Status.Attempts == 0 }

// isPulling reports whether the agent reports that a pull runs.
func (e Entry) isPulling() bool { return e.Status != nil && e.Status.State == v1alpha1.ImagePulling }

// unpacking reports whether the agent has received the whole image and is not done with it.
func (e Entry) unpacking() bool { return e.isPulling() && e.Status.FinishedAt != nil }

// followable reports whether peers can follow the pull of a seed: it has the manifests, which tell
// the size. A peer that followed sooner would miss them, and after a miss the agent waits 5 s,
// longer than a small image takes.
func (e Entry) followable(digest string) bool {
	return e.isPulling() && e.Status.Digest == digest && e.Status.SizeBytes > 0
}

// share is the part of an image, from 0 to 1, that a node has while it pulls and can serve already:
// mirrors offer each blob as soon as it is complete. So followers of the seed let in more followers
// before the seed is done, and no late one has the whole image to fetch then.
func (e Entry) share(digest string) float64 {
	if e.Status == nil || e.Status.Digest != digest || e.Status.SizeBytes <= 0 {
		return 0
	}
	return min(float64(e.Status.PulledBytes)/float64(e.Status.SizeBytes), 1)
}

// sameEntry reports whether two entries of a spec ask the same; nil stands for no entry.
func sameEntry(a, b *v1alpha1.NodeImage) bool {
	if a == nil || b == nil || a == b {
		return a == b
	}
	return a.Digest == b.Digest && a.Request == b.Request && a.RegistryPolicy == b.RegistryPolicy &&
		a.Retention == b.Retention && equalInt32(a.ImageDownloadRetryLimit, b.ImageDownloadRetryLimit) &&
		slices.Equal(a.ImagePullSecrets, b.ImagePullSecrets)
}

func equalInt32(a, b *int32) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
