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
	images map[string]recollection
}

// recollection is what is remembered of one image.
type recollection struct {
	// asked are the marks of the prefetches that want the image; once they change,
	// everybody may try again.
	asked string
	tried map[string]attempt // by node name
}

// attempt is a node's failure as a seed.
type attempt struct {
	at time.Time
	// final: trying again on the same node cannot help. refusals counts such answers.
	final    bool
	refusals int
	peers
}

// peers are nodes that a final answer of the registry speaks for as well.
type peers struct{ platform, access string }

// refusal is what the registry refused to such nodes: how many they are, how often it
// did, and when last.
type refusal struct {
	nodes, times int
	last         time.Time
}

// rest is how long nobody asks again.
func (r refusal) rest() time.Duration {
	rest := restAfterRefusal
	for times := refusalsBelieved; times < r.times && rest < maxRestAfterRefusal; times++ {
		rest *= 2
	}
	return min(rest, maxRestAfterRefusal)
}

// recall takes over what is still of use.
func recall(memory Memory, im *image) recollection {
	marks := make([]string, 0, len(im.wanters))
	for _, p := range im.wanters {
		marks = append(marks, p.mark)
	}
	slices.Sort(marks)
	asked := strings.Join(marks, ",")
	if was := memory.images[im.name]; was.asked == asked {
		return was
	}
	return recollection{asked: asked}
}

// remember notes that a seed failed, and when.
func (d *draft) remember(im *image, s *seat) {
	a := attempt{at: d.now}
	switch s.stand {
	case failed:
		a.at = d.since(s.entry.ChangedAt)
		a.final = v1alpha1.IsRefusal(s.entry.Status.Reason)
	case stalled:
		a.at = d.stallsAt(s)
	case idle, pulling, lost, holding:
	}
	if s.terms != nil {
		a.peers = peers{s.node.Platform, s.terms.access}
	}
	before, ok := im.memory.tried[s.node.Name]
	if ok && !before.at.Before(a.at) {
		return
	}
	if a.final {
		a.refusals = before.refusals + 1
	}
	tried := maps.Clone(im.memory.tried)
	if tried == nil {
		tried = make(map[string]attempt)
	}
	tried[s.node.Name] = a
	im.memory.tried = tried
}

// refusals sums up the final answers.
func (r recollection) refusals() map[peers]refusal {
	refusals := make(map[peers]refusal)
	for _, a := range r.tried {
		if a.final {
			sum := refusals[a.peers]
			sum.nodes++
			sum.times += a.refusals
			if a.at.After(sum.last) {
				sum.last = a.at
			}
			refusals[a.peers] = sum
		}
	}
	return refusals
}

// due is when a node may be a seed (again). A final answer is believed once a second
// node got it.
func (r recollection) due(s *seat, refusals map[peers]refusal) time.Time {
	refusal := refusals[peers{s.node.Platform, s.terms.access}]
	if refusal.nodes >= refusalsBelieved {
		return refusal.last.Add(refusal.rest())
	}
	a, ok := r.tried[s.node.Name]
	switch {
	case !ok:
		return time.Time{}
	case a.final:
		return a.at.Add(refusal.rest())
	}
	return a.at.Add(restAfterFailure)
}

// memorize keeps what the next plan needs: nothing of images that came and of nodes
// that went. While a tag is asked for, those who hold the image may have asked in vain.
func (d *draft) memorize() Memory {
	for _, im := range d.images {
		tried := make(map[string]attempt)
		for _, s := range im.seats {
			if a, ok := im.memory.tried[s.node.Name]; ok && !(s.stand == holding && s.current && len(im.asking) == 0) {
				tried[s.node.Name] = a
			}
		}
		if len(tried) > 0 {
			d.memory[im.name] = recollection{asked: im.memory.asked, tried: tried}
		}
	}
	if len(d.memory) == 0 {
		return Memory{}
	}
	return Memory{images: d.memory}
}
