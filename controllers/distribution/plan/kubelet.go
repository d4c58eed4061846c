// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "slices"

// readKubeletImages notes which placements the kubelets list.
func (pl *planner) readKubeletImages() {
	type listed struct {
		image   *image
		listing kubeletListing
	}
	byName := make(map[string]listed)
	byRepositoryDigest := make(map[string][]*image)
	for _, im := range pl.images {
		switch {
		case len(im.prefetches) == 0:
		case digestIn(im.name) != "":
			byName[im.name] = listed{im, digestListed}
		default:
			byName[im.name] = listed{im, nameListed}
			if im.digest != "" {
				name := byDigest(im.name, im.digest)
				byRepositoryDigest[name] = append(byRepositoryDigest[name], im)
			}
		}
	}
	for _, n := range pl.nodes {
		for _, name := range n.KubeletImages {
			if found, ok := byName[name]; ok {
				found.image.noteListing(n, found.listing)
			}
			for _, im := range byRepositoryDigest[name] {
				im.noteListing(n, digestListed)
			}
		}
	}
}

func (im *image) noteListing(n *node, listing kubeletListing) {
	at, ok := slices.BinarySearchFunc(im.placements, n.index, func(p *placement, index int) int { return p.node.index - index })
	if ok {
		im.placements[at].listing = max(im.placements[at].listing, listing)
	}
}
