// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// entry is one image of the spec, with what the agent knows about it. Only the Agent's loop reads
// and writes it. Its fields give the states that doc.go draws:
//
//	present  failed  attempt  state    next step
//	true     any     nil      Present  check when needsCheck; resolve the tag for a new request ID
//	true     any     running  Present  none: the attempt resolves the tag again
//	false    true    nil      Failed   pull at retryAt, unless final; check when needsCheck
//	false    true    running  Failed   none: the attempt is a further try
//	false    false   nil      Pending  check when needsCheck; pull at retryAt, when a slot is free
//	false    false   running  Pulling  none
//
// A peer's entry without a digest is Pending, and waits until the spec has one. Under
// RegistryPolicyLocal to resolve a tag is to look what it means on the node.
type entry struct {
	spec v1alpha1.NodeImage
	ref  imageref.Reference // zero if the name does not parse

	// answer is the last answer of the registry.
	answer answer
	// needsCheck: it is not known whether the image is there.
	needsCheck bool
	// present: the image is there, with the digest that wanted returns.
	present bool
	// failed: the retry limit is reached, or the registry refused, or the disk is full, or the node
	// alone could have the image and does not. It is so until the image is there or the spec changes.
	failed bool
	// final: no further try can help until the spec changes.
	final bool
	// failures in a row count towards the retry limit. consecutiveFailures, which set the backoff,
	// include those that say nothing about the image.
	failures, consecutiveFailures int
	// retryAt is the earliest time of the next try; zero is now.
	retryAt time.Time
	// queuedAt is when the entry began to wait for a slot. The longest wait gets the next slot.
	queuedAt time.Time

	checking bool
	attempt  *attempt // the running pull, or nil
	// removed: the spec no longer has the entry, but a check or a pull of it still runs.
	removed bool

	status v1alpha1.NodeImageStatus // as of the last event; currentStatus completes it
}

// answer is the digest that the registry gave for a tag.
type answer struct {
	digest     digest.Digest
	requestIDs string // the request IDs that it answers, separated by commas
	// specDigest is the spec's digest at the time. As long as the spec has it, the answer is newer
	// than the spec.
	specDigest digest.Digest
}

// step is what to do next for an entry.
type step int

const (
	stepNone step = iota // nothing, or a check or a pull is running
	stepWait             // until entry.retryAt
	stepCheck
	stepPull
)

// nextStep decides what to do next. It changes nothing.
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

// wanted returns the digest that the node is to have, or "" if it is not known, and whether the
// registry, or the node, is to be asked what the tag means. Until there is an answer, the node keeps
// the image that it has.
func (e *entry) wanted() (want digest.Digest, resolve bool) {
	if d := e.ref.Digest(); d != "" {
		return d, false
	}
	spec := digest.Digest(e.spec.Digest)
	mayResolve := e.spec.RegistryPolicy != v1alpha1.RegistryPolicyMirror
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

// looksLocally reports whether the entry is for what the node has under the name, whatever that is.
func (e *entry) looksLocally() bool { return e.spec.RegistryPolicy == v1alpha1.RegistryPolicyLocal }

// answersAll reports whether all request IDs in asked are among those in answered. An ID that is no
// longer asked for does not make an answer old.
func answersAll(answered, asked string) bool {
	if answered == asked {
		return true
	}
	ids := strings.Split(answered, ",")
	for id := range strings.SplitSeq(asked, ",") {
		if !slices.Contains(ids, id) {
			return false
		}
	}
	return true
}

// update takes up a new spec of the same name. It reports whether that leaves anything to do or to
// answer. It abandons a running attempt that does not serve the new spec.
func (e *entry) update(spec v1alpha1.NodeImage) (work bool) {
	old := e.spec
	before, _ := e.wanted()
	e.spec = spec
	want, resolve := e.wanted()
	e.removed = false

	if samePull(old, spec) && before == want {
		return false
	}
	// The spec has changed, so the cause of the failures may be gone.
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

// samePull reports whether two specs are pulled in the same way. It leaves the digest out, because
// update compares what wanted returns.
func samePull(a, b v1alpha1.NodeImage) bool {
	return a.RegistryPolicy == b.RegistryPolicy && a.Request == b.Request &&
		retryLimit(a) == retryLimit(b) && slices.Equal(a.ImagePullSecrets, b.ImagePullSecrets)
}

func retryLimit(spec v1alpha1.NodeImage) int {
	return int(ptr.Deref(spec.ImageDownloadRetryLimit, v1alpha1.DefaultImageDownloadRetryLimit))
}

func pinned(spec v1alpha1.NodeImage) bool {
	return spec.Retention != v1alpha1.RetentionBestEffort
}

// succeed records that the node has the digest. If the tag is still to be resolved, the failures
// remain, because they are of that.
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

// fail records an error of a pull, and sets when the next try may begin.
func (e *entry) fail(err error, now time.Time) {
	f := classify(err)
	e.status.Reason, e.status.Message = f.reason, statusMessage(err)
	e.consecutiveFailures++
	e.retryAt = now.Add(backoff(e.consecutiveFailures))
	if f.uncounted {
		return
	}
	e.failures++
	e.final = v1alpha1.IsRefusal(f.reason)
	e.failed = e.final || e.failures > retryLimit(e.spec) ||
		f.reason == v1alpha1.ReasonInsufficientDisk || f.reason == v1alpha1.ReasonImageNotOnNode
}

// state is the state to report. An entry stays Present while its tag is resolved again, also when
// that fails.
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
