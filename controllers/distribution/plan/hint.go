// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "slices"

// hint is what the kubelet says of an image.
type hint int

const (
	hintNone   hint = iota
	hintName        // something under that name
	hintDigest      // that very digest
)

// readHints asks the kubelets' lists who may hold an image.
func (d *draft) readHints() {
	type lead struct {
		image *image
		hint  hint
	}
	leads := make(map[string]lead)
	var tags []*image
	for _, im := range d.images {
		if len(im.wanters) == 0 {
			continue
		}
		if digestIn(im.name) != "" {
			leads[im.name] = lead{im, hintDigest}
			continue
		}
		leads[im.name] = lead{im, hintName}
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
		for _, name := range n.Hints {
			if l, ok := leads[name]; ok {
				l.image.take(n, l.hint)
			}
			for _, im := range byRepositoryDigest[name] {
				im.take(n, hintDigest)
			}
		}
	}
}

func (im *image) take(n *node, h hint) {
	at, ok := slices.BinarySearchFunc(im.seats, n.index, func(s *seat, index int) int { return s.node.index - index })
	if ok {
		im.seats[at].hint = max(im.seats[at].hint, h)
	}
}
