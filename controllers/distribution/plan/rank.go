// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// rankSeeds returns the candidates that may become a seed now, the best first.
func (pl *planner) rankSeeds(im *image, candidates []*placement) []*placement {
	if len(candidates) == 0 {
		return nil
	}
	siblings := make(map[int]int)
	for _, pf := range im.prefetches {
		for index, count := range pf.seedImages {
			siblings[index] += count
		}
	}
	refusals := im.history.refusals()
	var scores []seedScore
	refused := make(map[string]bool) // by platform: nobody is left who may ask
	for _, p := range candidates {
		if at := im.history.retryAt(p, refusals); at.After(pl.now) {
			pl.wakeAt(at)
			if _, once := refused[p.node.Platform]; !once {
				refused[p.node.Platform] = refusedTo(p.node.Platform, refusals)
			}
			continue
		}
		refused[p.node.Platform] = false
		scores = append(scores, im.score(p, siblings[p.node.index]))
	}
	im.noteRefused(refused)
	slices.SortFunc(scores, seedScore.compare)
	ranked := make([]*placement, 0, len(scores))
	for _, s := range scores {
		ranked = append(ranked, s.placement)
	}
	return ranked
}

// refusedTo reports whether the registry refused the image to a node of the platform.
func refusedTo(platform string, refusals map[accessGroup]refusalSummary) bool {
	for group := range refusals {
		if group.platform == platform {
			return true
		}
	}
	return false
}

func (im *image) noteRefused(platforms map[string]bool) {
	for platform, refused := range platforms {
		if refused {
			if im.refusedPlatforms == nil {
				im.refusedPlatforms = make(map[string]bool)
			}
			im.refusedPlatforms[platform] = true
		}
	}
}

func (im *image) score(p *placement, siblingImages int) seedScore {
	failure := im.history.failures[p.node.Name]
	if failure.refused && siblingImages > 0 {
		failure.at = time.Time{} // the registry serves the node again, as a sibling image shows
	}
	s := seedScore{
		placement:     p,
		failedAt:      failure.at,
		listing:       p.listing,
		secrets:       p.requirements.namedSecrets,
		siblingImages: siblingImages,
		imageCount:    p.node.imageCount,
	}
	if p.Status != nil {
		s.present = p.Status.State == v1alpha1.ImagePresent && (im.digest == "" || p.Status.Digest == im.digest)
		if p.current {
			s.receivedBytes = p.Status.PulledBytes
		}
	}
	return s
}

func (s seedScore) compare(other seedScore) int {
	return cmp.Or(
		s.failedAt.Compare(other.failedAt),
		trueFirst(s.present, other.present),
		trueFirst(s.listing == digestListed, other.listing == digestListed),
		cmp.Compare(other.secrets, s.secrets),
		cmp.Compare(other.listing, s.listing),
		cmp.Compare(other.siblingImages, s.siblingImages),
		cmp.Compare(other.receivedBytes, s.receivedBytes),
		cmp.Compare(other.imageCount, s.imageCount),
		cmp.Compare(s.placement.node.index, other.placement.node.index),
	)
}

func trueFirst(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}
