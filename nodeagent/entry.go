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

// entry is one entry of the spec and what is known about it. Only the Agent's loop
// touches it.
type entry struct {
	spec v1alpha1.NodeImage
	ref  imageref.Reference

	// answer is what the registry said last.
	answer answer
	// unchecked: whether the node holds it has to be looked up.
	needsCheck bool
	// present: the node holds the digest of status.
	present bool
	// failed: the retry limit is reached, or the error was final. It stays so until
	// the image is here or the entry changes.
	failed bool
	// final: no further try can help until the entry changes.
	final bool
	// failures are those that count towards the limit, stumbles all in a row.
	failures, consecutiveFailures int
	// retryAt is when to try next; zero is now.
	retryAt time.Time
	// queuedAt is when it began to wait for a slot: first come, first served.
	queuedAt time.Time

	checking bool
	attempt  *attempt // running, or nil
	// gone: the spec no longer names it, but something of it is still running.
	removed bool

	status v1alpha1.NodeImageStatus
}

// answer is what the registry said that a tag means.
type answer struct {
	digest     digest.Digest
	requestIDs string
	// specDigest is the spec's digest at the time: as long as it stands there the answer is
	// newer than the spec.
	specDigest digest.Digest
}

// step is what to do next with an image.
type step int

const (
	stepNone step = iota // nothing to do, or something is running
	stepWait             // until entry.retryAt
	stepCheck
	stepPull
)

// nextStep is pure.
func (e *entry) nextStep(now time.Time) step {
	want, resolve := e.wanted()
	switch {
	case e.removed, e.ref == (imageref.Reference{}), e.checking, e.attempt != nil:
		return stepNone
	case want == "" && !resolve:
		return stepNone // a peer whose digest is not known yet
	case e.needsCheck && want != "":
		return stepCheck
	case e.final, e.present && !resolve:
		return stepNone
	case now.Before(e.retryAt):
		return stepWait
	default:
		return stepPull
	}
}

// wanted is the digest that the node shall hold, as far as it is known, and whether
// the registry is to be asked. Until that has answered, the node keeps what it holds.
func (e *entry) wanted() (want digest.Digest, resolve bool) {
	if d := e.ref.Digest(); d != "" {
		return d, false
	}
	spec := digest.Digest(e.spec.Digest)
	mayResolve := e.spec.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	answered := e.answer.digest != "" && answersAll(e.answer.requestIDs, e.spec.Request)
	switch {
	case mayResolve && e.spec.Request != "" && !answered:
		return spec, true
	case answered && (spec == "" || spec == e.answer.specDigest):
		return e.answer.digest, false
	default:
		return spec, spec == "" && mayResolve
	}
}

// answersAll says whether all marks of the request are among the answered ones: a mark
// that is no longer asked for does not make an answer old.
func answersAll(answered, asked string) bool {
	if answered == asked {
		return true
	}
	marks := strings.Split(answered, ",")
	for mark := range strings.SplitSeq(asked, ",") {
		if !slices.Contains(marks, mark) {
			return false
		}
	}
	return true
}

// update takes up a new entry of the same name, and says whether that leaves anything to
// do or to answer. The running attempt, if any, is told to stop if it serves the new entry no more.
func (e *entry) update(spec v1alpha1.NodeImage) (work bool) {
	old := e.spec
	before, _ := e.wanted()
	e.spec = spec
	want, resolve := e.wanted()
	e.removed = false

	if samePull(old, spec) && before == want {
		return false
	}
	// The author did something: whatever held it up may be mended.
	e.failed, e.final, e.failures, e.consecutiveFailures, e.retryAt = false, false, 0, 0, time.Time{}
	if before != want || resolve || old.RegistryPolicy != spec.RegistryPolicy {
		e.status.Attempts, e.status.Reason, e.status.Message = 0, "", ""
	}
	if before != want {
		e.present, e.needsCheck = false, true
	}
	if e.attempt != nil && !e.attempt.usefulFor(spec.RegistryPolicy, want, resolve) {
		e.attempt.abandon()
	}
	return resolve || !e.present || old.Request != spec.Request
}

// samePull ignores what changes nothing about how an image is brought here: the
// retention, and the digest, which counts through entry.wanted.
func samePull(a, b v1alpha1.NodeImage) bool {
	return a.RegistryPolicy == b.RegistryPolicy && a.Request == b.Request &&
		retryLimit(a) == retryLimit(b) && slices.Equal(a.ImagePullSecrets, b.ImagePullSecrets)
}

func retryLimit(spec v1alpha1.NodeImage) int {
	if spec.ImageDownloadRetryLimit == nil {
		return 3 // the schema's default
	}
	return int(*spec.ImageDownloadRetryLimit)
}

func pinned(spec v1alpha1.NodeImage) bool {
	return spec.Retention != v1alpha1.RetentionBestEffort
}

// succeed records that the node holds the digest. A tag that is asked for again may
// have been asked for in vain all the same.
func (e *entry) succeed(d digest.Digest) {
	want, resolve := e.wanted()
	e.present = d == want
	e.needsCheck = e.needsCheck || !e.present
	if resolve {
		return
	}
	e.failed, e.final, e.failures, e.consecutiveFailures, e.retryAt = false, false, 0, 0, time.Time{}
	e.status.Reason, e.status.Message = "", ""
}

// fail records an error of a pull. Failed or not, the image is tried again unless that
// cannot help.
func (e *entry) fail(err error, now time.Time) {
	f := classify(err)
	e.status.Reason, e.status.Message = f.reason, message(err)
	e.consecutiveFailures++
	e.retryAt = now.Add(backoff(e.consecutiveFailures))
	if f.uncounted {
		return
	}
	e.failures++
	e.final = v1alpha1.IsRefusal(f.reason)
	e.failed = e.final || e.failures > retryLimit(e.spec) || f.reason == v1alpha1.ReasonInsufficientDisk
}

// state is what the status says. What is present stays so while its tag is asked for
// again, even in vain.
func (e *entry) state() v1alpha1.ImageState {
	switch {
	case e.present:
		return v1alpha1.ImagePresent
	case e.failed:
		return v1alpha1.ImageFailed
	case e.attempt != nil:
		return v1alpha1.ImagePulling
	default:
		return v1alpha1.ImagePending
	}
}

func byName(a, b v1alpha1.NodeImageStatus) int { return cmp.Compare(a.Name, b.Name) }
