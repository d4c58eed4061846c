// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "slices"

// kubeletListing is what the kubelet says of an image.
type kubeletListing int

const (
	notListed    kubeletListing = iota
	nameListed                  // something under that name
	digestListed                // that very digest
)

// readKubeletImages asks the kubelets' lists who may hold an image.
func (d *planner) readKubeletImages() {
	type lead struct {
		image *image
		hint  kubeletListing
	}
	leads := make(map[string]lead)
	var tags []*image
	for _, im := range d.images {
		if len(im.prefetches) == 0 {
			continue
		}
		if digestIn(im.name) != "" {
			leads[im.name] = lead{im, digestListed}
			continue
		}
		leads[im.name] = lead{im, nameListed}
		tags = append(tags, im)
	}
	byRepositoryDigest := make(map[string][]*image)
	for _, im := range tags {
		if im.digest != "" {
			key := byDigest(im.name, im.digest)
			byRepositoryDigest[key] = append(byRepositoryDigest[key], im)
		}
	}
	for _, n := range d.nodes {
		for _, name := range n.KubeletImages {
			if l, ok := leads[name]; ok {
				l.image.noteListing(n, l.hint)
			}
			for _, im := range byRepositoryDigest[name] {
				im.noteListing(n, digestListed)
			}
		}
	}
}

func (im *image) noteListing(n *node, h kubeletListing) {
	at, ok := slices.BinarySearchFunc(im.placements, n.index, func(s *placement, index int) int { return s.node.index - index })
	if ok {
		im.placements[at].listing = max(im.placements[at].listing, h)
	}
}
