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

// Memory is what one plan tells the next: which nodes failed as seeds. It is opaque
// to the controller and is never changed in place.
type Memory struct {
	images map[string]imageHistory
}

// imageHistory is what is remembered of one image.
type imageHistory struct {
	// requestIDs are the marks of the prefetches that want the image; once they change,
	// everybody may try again.
	requestIDs string
	failures   map[string]seedFailure // by node name
}

// seedFailure is a node's failure as a seed.
type seedFailure struct {
	at time.Time
	// final: trying again on the same node cannot help. refusals counts such answers.
	final    bool
	refusals int
	accessGroup
}

// accessGroup are nodes that a final answer of the registry speaks for as well.
type accessGroup struct{ platform, secretsKey string }

// refusal is what the registry refused to such nodes: how many they are, how often it
// did, and when last.
type refusal struct {
	nodes, times int
	last         time.Time
}

// backoff is how long nobody asks again.
func (r refusal) backoff() time.Duration {
	rest := refusalBackoff
	for times := minRefusals; times < r.times && rest < maxRefusalBackoff; times++ {
		rest *= 2
	}
	return min(rest, maxRefusalBackoff)
}

// historyOf takes over what is still of use.
func historyOf(memory Memory, im *image) imageHistory {
	marks := make([]string, 0, len(im.prefetches))
	for _, p := range im.prefetches {
		marks = append(marks, p.requestID)
	}
	slices.Sort(marks)
	asked := strings.Join(marks, ",")
	if was := memory.images[im.name]; was.requestIDs == asked {
		return was
	}
	return imageHistory{requestIDs: asked}
}

// recordFailure notes that a seed failed, and when.
func (d *planner) recordFailure(im *image, s *placement) {
	a := seedFailure{at: d.now}
	switch s.state {
	case failed:
		a.at = d.orNow(s.entry.ChangedAt)
		a.final = v1alpha1.IsRefusal(s.entry.Status.Reason)
	case stalled:
		a.at = d.stallsAt(s)
	case idle, pulling, lost, present:
	}
	if s.requirements != nil {
		a.accessGroup = accessGroup{s.node.Platform, s.requirements.secretsKey}
	}
	before, ok := im.history.failures[s.node.Name]
	if ok && !before.at.Before(a.at) {
		return
	}
	if a.final {
		a.refusals = before.refusals + 1
	}
	tried := maps.Clone(im.history.failures)
	if tried == nil {
		tried = make(map[string]seedFailure)
	}
	tried[s.node.Name] = a
	im.history.failures = tried
}

// refusalsByGroup sums up the final answers.
func (r imageHistory) refusalsByGroup() map[accessGroup]refusal {
	refusals := make(map[accessGroup]refusal)
	for _, a := range r.failures {
		if a.final {
			sum := refusals[a.accessGroup]
			sum.nodes++
			sum.times += a.refusals
			if a.at.After(sum.last) {
				sum.last = a.at
			}
			refusals[a.accessGroup] = sum
		}
	}
	return refusals
}

// retryAt is when a node may be a seed (again). A final answer is believed once a second
// node got it.
func (r imageHistory) retryAt(s *placement, refusals map[accessGroup]refusal) time.Time {
	refusal := refusals[accessGroup{s.node.Platform, s.requirements.secretsKey}]
	if refusal.nodes >= minRefusals {
		return refusal.last.Add(refusal.backoff())
	}
	a, ok := r.failures[s.node.Name]
	switch {
	case !ok:
		return time.Time{}
	case a.final:
		return a.at.Add(refusal.backoff())
	}
	return a.at.Add(failureBackoff)
}

// nextMemory keeps what the next plan needs: nothing of images that came and of nodes
// that went. While a tag is asked for, those who hold the image may have asked in vain.
func (d *planner) nextMemory() Memory {
	for _, im := range d.images {
		tried := make(map[string]seedFailure)
		for _, s := range im.placements {
			if a, ok := im.history.failures[s.node.Name]; ok && !(s.state == present && s.current && len(im.openRequestIDs) == 0) {
				tried[s.node.Name] = a
			}
		}
		if len(tried) > 0 {
			d.nextHistory[im.name] = imageHistory{requestIDs: im.history.requestIDs, failures: tried}
		}
	}
	if len(d.nextHistory) == 0 {
		return Memory{}
	}
	return Memory{images: d.nextHistory}
}
