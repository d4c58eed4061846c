// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// historyFrom is what the last plan remembered of the image, if its prefetches still ask the same.
func (im *image) historyFrom(memory Memory) imageHistory {
	ids := make([]string, 0, len(im.prefetches))
	for _, pf := range im.prefetches {
		ids = append(ids, pf.requestID)
	}
	slices.Sort(ids)
	joined := strings.Join(ids, ",")
	if history := memory.images[im.name]; history.requestIDs == joined {
		return history
	}
	return imageHistory{requestIDs: joined}
}

// recordFailure notes that a seed failed, and when.
func (pl *planner) recordFailure(im *image, p *placement) {
	failure := seedFailure{at: pl.now}
	switch p.state {
	case failed:
		failure.at = pl.orNow(p.ChangedAt)
		failure.refused = v1alpha1.IsRefusal(p.Status.Reason)
	case stalled:
		failure.at = pl.stallsAt(p)
	case idle, pulling, lost, present:
	}
	if p.requirements != nil {
		failure.accessGroup = accessGroup{p.node.Platform, p.requirements.secretsKey}
	}
	before, ok := im.history.failures[p.node.Name]
	if ok && !before.at.Before(failure.at) {
		return
	}
	if failure.refused {
		failure.refusals = before.refusals + 1
	}
	failures := maps.Clone(im.history.failures)
	if failures == nil {
		failures = make(map[string]seedFailure)
	}
	failures[p.node.Name] = failure
	im.history.failures = failures
}

// refusals sums up the refusals of each access group.
func (h imageHistory) refusals() map[accessGroup]refusalSummary {
	summaries := make(map[accessGroup]refusalSummary)
	for _, failure := range h.failures {
		if failure.refused {
			sum := summaries[failure.accessGroup]
			sum.nodes++
			sum.times += failure.refusals
			if failure.at.After(sum.last) {
				sum.last = failure.at
			}
			summaries[failure.accessGroup] = sum
		}
	}
	return summaries
}

// backoff is how long no node of the access group asks again.
func (r refusalSummary) backoff() time.Duration {
	backoff := refusalBackoff
	for times := minRefusals; times < r.times && backoff < maxRefusalBackoff; times++ {
		backoff *= 2
	}
	return min(backoff, maxRefusalBackoff)
}

// retryAt is when a node may be a seed, or be one again. A refusal is believed, for all nodes of
// the access group, once a second node got it.
func (h imageHistory) retryAt(p *placement, refusals map[accessGroup]refusalSummary) time.Time {
	refusal := refusals[accessGroup{p.node.Platform, p.requirements.secretsKey}]
	if refusal.nodes >= minRefusals {
		return refusal.last.Add(refusal.backoff())
	}
	failure, ok := h.failures[p.node.Name]
	switch {
	case !ok:
		return time.Time{}
	case failure.refused:
		return failure.at.Add(refusal.backoff())
	}
	return failure.at.Add(failureBackoff)
}

// nextMemory is what the next plan needs. It drops the failures of nodes that are gone, and of
// nodes that have the image, except while its tag is asked for again: they may have failed to get
// an answer.
func (pl *planner) nextMemory() Memory {
	images := make(map[string]imageHistory)
	for _, im := range pl.images {
		failures := make(map[string]seedFailure)
		for _, p := range im.placements {
			failure, ok := im.history.failures[p.node.Name]
			if ok && !(p.state == present && p.current && len(im.openRequestIDs) == 0) {
				failures[p.node.Name] = failure
			}
		}
		if len(failures) > 0 {
			images[im.name] = imageHistory{requestIDs: im.history.requestIDs, failures: failures}
		}
	}
	return Memory{images: images, targets: pl.targetsByUID(), joined: pl.joined, served: pl.served}
}
