// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// JoinedTimes are, by node and image name, when nodes became desired that came while the image was
// being brought to others already.
type JoinedTimes map[string]map[string]time.Time

// At is when a node joined for an image; zero if it did not, or has the image by now.
func (j JoinedTimes) At(node, image string) time.Time { return j[node][image] }

func (j JoinedTimes) set(node, image string, at time.Time) {
	if j[node] == nil {
		j[node] = make(map[string]time.Time)
	}
	if j[node][image].IsZero() {
		j[node][image] = at
	}
}

// findJoined notes the nodes that the last plan did not know as desired, for the images that it
// brought to others. A controller that has just started knows of no last plan: it goes by what
// entries say of earlier ones.
func (pl *planner) findJoined(memory Memory) {
	pl.joined, pl.served = make(JoinedTimes), make(JoinedTimes)
	for node, images := range memory.joined {
		for image, at := range images {
			pl.joined.set(node, image, at)
		}
	}
	for _, n := range pl.nodes {
		for name, entry := range n.Entries {
			switch at := entry.joinedAt(); {
			case at.IsZero():
			case memory.served.At(n.Name, name).Equal(at):
				pl.served.set(n.Name, name, at)
			default:
				pl.joined.set(n.Name, name, at)
			}
		}
	}
	for _, pf := range pl.prefetches {
		last, known := memory.targets[pf.UID]
		pf.knownNodes = pf.nodesKnownFrom(last, known)
		if !known || slices.Equal(last.nodes, pf.knownNodes) {
			continue
		}
		for _, n := range pf.targets.desired {
			if _, was := slices.BinarySearch(last.nodes, n.Name); was {
				continue
			}
			for _, image := range pf.Images {
				if _, was := slices.BinarySearch(last.images, image); was {
					pl.joined.set(n.Name, image, pl.now)
				}
			}
		}
	}
}

// nodesKnownFrom returns the nodes that do not join: the desired ones, and those of the last plan
// that take no Pods at the moment. Without a last plan these are the ones that were asked for its
// images.
func (pf *prefetch) nodesKnownFrom(last lastTargets, known bool) []string {
	var retained []string
	for _, n := range pf.targets.retained {
		was := slices.ContainsFunc(pf.Images, func(image string) bool { return n.Entries[image].Wanted != nil })
		if known {
			_, was = slices.BinarySearch(last.nodes, n.Name)
		}
		if was {
			retained = append(retained, n.Name)
		}
	}
	if len(retained) == 0 {
		return pf.targets.names
	}
	return slices.Sorted(slices.Values(slices.Concat(pf.targets.names, retained)))
}

// dropJoined forgets each node that has the image by now, is not desired any more, or is to have
// another digest. An entry says for ever that its node joined, since it is not rewritten only to
// forget that: so a node that has had the image is remembered, lest it joins again when it loses it.
func (pl *planner) dropJoined() {
	remaining := make(JoinedTimes)
	for _, im := range pl.images {
		for _, p := range im.placements {
			at := pl.joined.At(p.node.Name, im.name)
			served := p.state == present && p.current
			if mark := p.joinedAt(); served && !mark.IsZero() {
				pl.served.set(p.node.Name, im.name, mark)
			}
			if at.IsZero() || !p.desired || served {
				continue
			}
			if p.Wanted != nil && p.next != nil && p.next.Digest != p.Wanted.Digest && p.Wanted.Digest != "" {
				continue // the tag has moved: the node was there already
			}
			remaining.set(p.node.Name, im.name, at)
		}
	}
	pl.joined = remaining
}

// joinedAt is the value of an entry's joinedAt.
func (pl *planner) joinedAt(node, image string) *metav1.Time {
	at := pl.joined.At(node, image)
	if at.IsZero() {
		return nil
	}
	return &metav1.Time{Time: at}
}

// targetsByUID are the targets of this plan, for the next one.
func (pl *planner) targetsByUID() map[string]lastTargets {
	targets := make(map[string]lastTargets, len(pl.prefetches))
	for _, pf := range pl.prefetches {
		targets[pf.UID] = lastTargets{nodes: pf.knownNodes, images: slices.Sorted(slices.Values(pf.Images))}
	}
	return targets
}
