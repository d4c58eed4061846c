// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// seedScore are what speaks for a node as the next seed, the weightiest first.
type seedScore struct {
	placement     *placement
	failedAt      time.Time // as a seed of this image; those who have not come first, then the longest ago
	present       bool      // its agent says that it holds the image: nothing but a HEAD goes upstream
	listing       kubeletListing
	secrets       int   // credentials: one team's lack of them must not stop another
	siblingImages int   // images of the same prefetches that it is bringing: shared layers come once
	receivedBytes int64 // received already, following the last seed
	imageCount    int   // images of any prefetch
}

// rankSeeds ranks those who may become a seed now.
func (d *planner) rankSeeds(im *image, candidates []*placement) []*placement {
	if len(candidates) == 0 {
		return nil
	}
	kin := make(map[int]int)
	for _, p := range im.prefetches {
		for index, n := range p.seedImages {
			kin[index] += n
		}
	}
	refusals := im.history.refusalsByGroup()
	var line []seedScore
	for _, s := range candidates {
		if due := im.history.retryAt(s, refusals); due.After(d.now) {
			d.wakeAt(due)
			continue
		}
		line = append(line, im.score(s, kin[s.node.index]))
	}
	im.refused = im.refused || len(line) == 0 && len(refusals) > 0
	slices.SortFunc(line, seedScore.compare)
	ranked := make([]*placement, 0, len(line))
	for _, m := range line {
		ranked = append(ranked, m.placement)
	}
	return ranked
}

func (im *image) score(s *placement, kin int) seedScore {
	tried := im.history.failures[s.node.Name]
	if tried.final && kin > 0 {
		tried.at = time.Time{} // the registry serves it again, as it shows with another image
	}
	m := seedScore{
		placement:     s,
		failedAt:      tried.at,
		listing:       s.listing,
		secrets:       len(s.requirements.secrets),
		siblingImages: kin,
		imageCount:    s.node.imageCount,
	}
	if status := s.entry.Status; status != nil {
		m.present = status.State == v1alpha1.ImagePresent && (im.digest == "" || status.Digest == im.digest)
		if s.current {
			m.receivedBytes = status.PulledBytes
		}
	}
	return m
}

func (m seedScore) compare(other seedScore) int {
	return cmp.Or(
		m.failedAt.Compare(other.failedAt),
		firstIf(m.present, other.present),
		firstIf(m.listing == digestListed, other.listing == digestListed),
		cmp.Compare(other.secrets, m.secrets),
		cmp.Compare(other.listing, m.listing),
		cmp.Compare(other.siblingImages, m.siblingImages),
		cmp.Compare(other.receivedBytes, m.receivedBytes),
		cmp.Compare(other.imageCount, m.imageCount),
		cmp.Compare(m.placement.node.index, other.placement.node.index),
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
