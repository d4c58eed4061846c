// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// merits are what speaks for a node as the next seed, the weightiest first.
type merits struct {
	seat   *seat
	failed time.Time // as a seed of this image; those who have not come first, then the longest ago
	proof  bool      // its agent says that it holds the image: nothing but a HEAD goes upstream
	hint   hint
	keys   int   // credentials: one team's lack of them must not stop another
	kin    int   // images of the same prefetches that it is bringing: shared layers come once
	bytes  int64 // received already, following the last seed
	holds  int   // images of any prefetch
}

// inLine ranks those who may become a seed now.
func (d *draft) inLine(im *image, candidates []*seat) []*seat {
	if len(candidates) == 0 {
		return nil
	}
	kin := make(map[int]int)
	for _, p := range im.wanters {
		for index, n := range p.seeds {
			kin[index] += n
		}
	}
	refusals := im.memory.refusals()
	var line []merits
	for _, s := range candidates {
		if due := im.memory.due(s, refusals); due.After(d.now) {
			d.wakeAt(due)
			continue
		}
		line = append(line, im.weigh(s, kin[s.node.index]))
	}
	im.refused = im.refused || len(line) == 0 && len(refusals) > 0
	slices.SortFunc(line, merits.compare)
	ranked := make([]*seat, 0, len(line))
	for _, m := range line {
		ranked = append(ranked, m.seat)
	}
	return ranked
}

func (im *image) weigh(s *seat, kin int) merits {
	tried := im.memory.tried[s.node.Name]
	if tried.final && kin > 0 {
		tried.at = time.Time{} // the registry serves it again, as it shows with another image
	}
	m := merits{
		seat:   s,
		failed: tried.at,
		hint:   s.hint,
		keys:   len(s.terms.secrets),
		kin:    kin,
		holds:  s.node.holds,
	}
	if status := s.entry.Status; status != nil {
		m.proof = status.State == v1alpha1.ImagePresent && (im.digest == "" || status.Digest == im.digest)
		if s.current {
			m.bytes = status.PulledBytes
		}
	}
	return m
}

func (m merits) compare(other merits) int {
	return cmp.Or(
		m.failed.Compare(other.failed),
		firstIf(m.proof, other.proof),
		firstIf(m.hint == hintDigest, other.hint == hintDigest),
		cmp.Compare(other.keys, m.keys),
		cmp.Compare(other.hint, m.hint),
		cmp.Compare(other.kin, m.kin),
		cmp.Compare(other.bytes, m.bytes),
		cmp.Compare(other.holds, m.holds),
		cmp.Compare(m.seat.node.index, other.seat.node.index),
	)
}

func firstIf(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}
