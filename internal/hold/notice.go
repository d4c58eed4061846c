// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/internal/duration"
)

// Notice is an event on a Deployment.
type Notice struct {
	// Warning reports that someone should look at it.
	Warning bool
	// Reason is one of the reasons of this package.
	Reason string
	// Note says it for a person.
	Note string
}

// releaseNotice says how a hold ended that began a time ago. The prefetch is the name of what the
// Deployment waited for, because is what verdict.explain says, and missing what it still waited
// for when its timeout ran out.
func releaseNotice(end End, ago time.Duration, prefetch, because, missing string) Notice {
	after := "Released after " + roundedDuration(ago)
	switch end {
	case EndReady:
		return Notice{Reason: ReasonReleased, Note: fmt.Sprintf("%s: ImagePrefetch %q is Ready", after, prefetch)}
	case EndEvidence:
		return Notice{Reason: ReasonReleased, Note: after + ": " + because}
	case EndNoMatchingNodes, EndDenied:
		return Notice{Warning: true, Reason: ReasonReleased, Note: after + " without its images: " + because}
	case EndTimedOut:
		return Notice{Warning: true, Reason: ReasonHoldTimedOut, Note: after + " without its images, by its hold timeout: " + missing}
	case EndOptedOut:
		return Notice{Reason: ReasonReleased, Note: after + ": the Deployment is not gated, or skips the gate"}
	case EndSetBack:
		return Notice{Reason: ReasonReleased, Note: after + ": its images were let through before"}
	case EndResumed:
		return Notice{Warning: true, Reason: ReasonReleased, Note: "Not held any more: it was resumed past Sluice, and rolls out"}
	default: // EndElsewhere
		return Notice{Reason: ReasonReleased, Note: "Not held any more, and paused by its owner: resume it when it may roll out"}
	}
}

// notices are what a decision about a write is told by, besides the client's warnings. Of a hold
// that begins or goes on the gate controller tells.
func (w Write) notices(settings Settings, outcome Outcome, verdict verdict, was, next marks) []Notice {
	var notices []Notice
	switch {
	case next.held():
		return nil
	case was.held():
		end := End(outcome)
		switch {
		case next.paused:
			end = EndElsewhere
		case outcome == OutcomeUngated:
			end = EndOptedOut
		case outcome == OutcomeKnown:
			end = EndSetBack
		}
		var ago time.Duration
		if at, err := time.Parse(time.RFC3339, was.heldAt); err == nil {
			ago = w.Now.Sub(at)
		}
		notices = append(notices, releaseNotice(end, ago, settings.Prefetch, verdict.explain(), ""))
	case verdict.cause == CauseNoMatchingNodes || verdict.cause == CauseDenied:
		notices = append(notices, Notice{Warning: true, Reason: ReasonNotHeld, Note: "Not held: " + verdict.explain()})
	case verdict.cause == CauseEvidence && verdict.evidence.excused() != "":
		notices = append(notices, Notice{Reason: ReasonNotHeld, Note: "Not held: " + verdict.explain()})
	}
	return append(notices, verdict.unselectedNotice(settings.Prefetch)...)
}

func (v verdict) unselectedNotice(prefetch string) []Notice {
	if text := v.unselected(prefetch); text != "" {
		return []Notice{{Warning: true, Reason: ReasonNodesNotSelected, Note: text}}
	}
	return nil
}

func roundedDuration(d time.Duration) string {
	if d < time.Second {
		return duration.Format(d.Round(time.Millisecond))
	}
	return duration.Format(d.Round(time.Second))
}
