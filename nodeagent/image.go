// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// image is one entry of the spec and what is known about it. Only the Agent's loop
// touches it.
type image struct {
	entry v1alpha1.NodeImage
	ref   imageref.Reference

	// answer is what the registry said last.
	answer answer
	// unchecked: whether the node holds it has to be looked up.
	unchecked bool
	// present: the node holds the digest of status.
	present bool
	// failed: the retry limit is reached, or the error was final. It stays so until
	// the image is here or the entry changes.
	failed bool
	// final: no further try can help until the entry changes.
	final bool
	// failures are those that count towards the limit, stumbles all in a row.
	failures, stumbles int
	// due is when to try next; zero is now.
	due time.Time
	// since is when it began to wait for a slot: first come, first served.
	since time.Time

	checking bool
	attempt  *attempt // running, or nil
	// gone: the spec no longer names it, but something of it is still running.
	gone bool

	status v1alpha1.NodeImageStatus
}

// answer is what the registry said that a tag means.
type answer struct {
	digest  digest.Digest
	request string
	// over is the spec's digest at the time: as long as it stands there the answer is
	// newer than the spec.
	over digest.Digest
}

// step is what to do next with an image.
type step int

const (
	rest step = iota // nothing to do, or something is running
	wait             // until image.due
	check
	pull
)

// next is pure.
func (i *image) next(now time.Time) step {
	want, ask := i.wanted()
	switch {
	case i.gone, i.ref == (imageref.Reference{}), i.checking, i.attempt != nil:
		return rest
	case want == "" && !ask:
		return rest // a peer whose digest is not known yet
	case i.unchecked && want != "":
		return check
	case i.final, i.present && !ask:
		return rest
	case now.Before(i.due):
		return wait
	default:
		return pull
	}
}

// wanted is the digest that the node shall hold, as far as it is known, and whether
// the registry is to be asked. Until that has answered, the node keeps what it holds.
func (i *image) wanted() (want digest.Digest, ask bool) {
	if d := i.ref.Digest(); d != "" {
		return d, false
	}
	spec := digest.Digest(i.entry.Digest)
	mayAsk := i.entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	answered := i.answer.digest != "" && contains(i.answer.request, i.entry.Request)
	switch {
	case mayAsk && i.entry.Request != "" && !answered:
		return spec, true
	case answered && (spec == "" || spec == i.answer.over):
		return i.answer.digest, false
	default:
		return spec, spec == "" && mayAsk
	}
}

// contains says whether all marks of the request are among the answered ones: a mark
// that is no longer asked for does not make an answer old.
func contains(answered, request string) bool {
	if answered == request {
		return true
	}
	marks := strings.Split(answered, ",")
	for mark := range strings.SplitSeq(request, ",") {
		if !slices.Contains(marks, mark) {
			return false
		}
	}
	return true
}

// set takes up a new entry of the same name, and says whether that leaves anything to
// do or to answer. The running attempt, if any, is told to stop if it serves the new entry no more.
func (i *image) set(entry v1alpha1.NodeImage) (work bool) {
	old := i.entry
	before, _ := i.wanted()
	i.entry = entry
	want, ask := i.wanted()
	i.gone = false

	if sameWork(old, entry) && before == want {
		return false
	}
	// The author did something: whatever held it up may be mended.
	i.failed, i.final, i.failures, i.stumbles, i.due = false, false, 0, 0, time.Time{}
	if before != want || ask || old.RegistryPolicy != entry.RegistryPolicy {
		i.status.Attempts, i.status.Reason, i.status.Message = 0, "", ""
	}
	if before != want {
		i.present, i.unchecked = false, true
	}
	if i.attempt != nil && !i.attempt.serves(entry.RegistryPolicy, want, ask) {
		i.attempt.abandon()
	}
	return ask || !i.present || old.Request != entry.Request
}

// sameWork ignores what changes nothing about how an image is brought here: the
// retention, and the digest, which counts through image.wanted.
func sameWork(a, b v1alpha1.NodeImage) bool {
	return a.RegistryPolicy == b.RegistryPolicy && a.Request == b.Request &&
		retryLimit(a) == retryLimit(b) && slices.Equal(a.ImagePullSecrets, b.ImagePullSecrets)
}

func retryLimit(entry v1alpha1.NodeImage) int {
	if entry.ImageDownloadRetryLimit == nil {
		return 3 // the schema's default
	}
	return int(*entry.ImageDownloadRetryLimit)
}

func pinned(entry v1alpha1.NodeImage) bool {
	return entry.Retention != v1alpha1.RetentionBestEffort
}

// succeed records that the node holds the digest. A tag that is asked for again may
// have been asked for in vain all the same.
func (i *image) succeed(d digest.Digest) {
	want, ask := i.wanted()
	i.present = d == want
	i.unchecked = i.unchecked || !i.present
	if ask {
		return
	}
	i.failed, i.final, i.failures, i.stumbles, i.due = false, false, 0, 0, time.Time{}
	i.status.Reason, i.status.Message = "", ""
}

// fail records an error of a pull. Failed or not, the image is tried again unless that
// cannot help.
func (i *image) fail(err error, now time.Time) {
	f := classify(err)
	i.status.Reason, i.status.Message = f.reason, message(err)
	i.stumbles++
	i.due = now.Add(backoff(i.stumbles))
	if f.uncounted {
		return
	}
	i.failures++
	i.final = f.final
	i.failed = f.final || i.failures > retryLimit(i.entry) || f.reason == v1alpha1.ReasonInsufficientDisk
}

// state is what the status says. What is present stays so while its tag is asked for
// again, even in vain.
func (i *image) state() v1alpha1.ImageState {
	switch {
	case i.present:
		return v1alpha1.ImagePresent
	case i.failed:
		return v1alpha1.ImageFailed
	case i.attempt != nil:
		return v1alpha1.ImagePulling
	default:
		return v1alpha1.ImagePending
	}
}

func byName(a, b v1alpha1.NodeImageStatus) int { return cmp.Compare(a.Name, b.Name) }
