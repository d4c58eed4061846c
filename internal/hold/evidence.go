// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/scheduling"
)

// imageState is how an image stands on a node.
type imageState int

const (
	imageUnasked imageState = iota // the node is not asked for it
	imageAbsent                    // it is to come
	imageFailed                    // the agent has given up
	imagePresent                   // the agent says Present, for a digest that counts
	imageJoining                   // absent on a node that was asked for it after the hold began
)

// Evidence is what the agents say of the images of one Pod template, over the nodes on
// which its Pods may run. The counts are of nodes.
type Evidence struct {
	// Matching nodes have the labels and the affinity that the Pods ask for, and no lasting
	// taint that they do not tolerate, be they Ready or not.
	Matching int
	// Awaited are the matching nodes that take Pods now and are not excused. Each of them
	// has all images (Complete), lacks some of them (Lacking), or has failed (Failed).
	Awaited, Complete, Lacking, Failed int
	// Uncovered and Joined are the matching nodes that take Pods now and are excused: no agent runs
	// there, or they came after the hold began.
	Uncovered, Joined int
	// Missing are the images, sorted, that some awaited node does not have.
	Missing []string
	// Lacks is one of the awaited nodes that lack images: the last by name, since waves let
	// nodes in by name, so that it is among the last to change. Fails is the first by name of
	// those that have failed.
	Lacks, Fails string
	// Unselected are the nodes on which the Pods may start now, and to which neither the
	// ImagePrefetch that the workload names nor another is sure to bring all images.
	Unselected int
	// demand is what the nodes were asked for.
	demand demand
}

// NothingToWaitFor reports that no node matches as nodes are now. Pending Pods make an
// autoscaler add one, and a hold would keep them from being created. Nodes that are not Ready
// or cordoned do match.
func (e Evidence) NothingToWaitFor() bool { return e.Matching == 0 }

// Met reports that at least one node has all images and so has every awaited node, except
// at most tolerance that have failed.
func (e Evidence) Met(tolerance int) bool {
	return e.Complete > 0 && e.Lacking == 0 && e.Failed <= tolerance
}

// gather reads the evidence for a Pod template. Nodes that came after heldAt are excused;
// at the zero time none is. The prefetch is the one that the workload names, or nil.
func gather(pod *corev1.PodSpec, images TemplateImages, cluster Cluster, heldAt time.Time, prefetch *v1alpha1.ImagePrefetch) Evidence {
	demand := demand{scheduling.OfPod(pod), resolve(images, prefetch, cluster.Prefetches), heldAt}
	evidence := Evidence{demand: demand}
	selects := selection(prefetch)
	missing := make([]bool, len(demand.images))
	states := make([]imageState, len(demand.images))
	for i := range cluster.Nodes {
		node := &cluster.Nodes[i]
		fit := demand.constraints.Fit(&node.Node)
		if fit == scheduling.FitNever {
			continue
		}
		evidence.Matching++
		if fit == scheduling.FitLater {
			continue
		}
		state := demand.met(node, states)
		evidence.add(node.Name, state)
		if state != nodeUncovered && slices.Contains(states, imageUnasked) && !selects(node) {
			evidence.Unselected++
		}
		for i := range states {
			missing[i] = missing[i] || (state == nodeFailed || state == nodeLacking) && states[i] != imagePresent
		}
	}
	for i, image := range demand.images {
		if missing[i] {
			evidence.Missing = append(evidence.Missing, image.name)
		}
	}
	return evidence
}

// add counts one node on which the Pods may start now.
func (e *Evidence) add(name string, state nodeState) {
	switch state {
	case nodeUncovered:
		e.Uncovered++
	case nodeJoined:
		e.Joined++
	case nodeComplete:
		e.Awaited++
		e.Complete++
	case nodeFailed:
		e.Awaited++
		e.Failed++
		if e.Fails == "" || name < e.Fails {
			e.Fails = name
		}
	case nodeLacking:
		e.Awaited++
		e.Lacking++
		e.Lacks = max(e.Lacks, name)
	}
}

// demand is what a Pod template asks of each node.
type demand struct {
	constraints scheduling.Constraints
	images      []wantedImage
	heldAt      time.Time
}

// nodeState is how a node, on which the Pods may start now, meets a demand.
type nodeState int

const (
	nodeUncovered nodeState = iota // excused
	nodeJoined                     // excused
	nodeComplete
	nodeFailed
	nodeLacking
)

// met reports how a node meets the demand, and leaves in states how each of the images stands on it.
func (d *demand) met(node *Node, states []imageState) nodeState {
	if node.Uncovered {
		return nodeUncovered
	}
	var counts [imageJoining + 1]int
	for i := range d.images {
		states[i] = d.images[i].on(node, d.heldAt)
		counts[states[i]]++
	}
	switch {
	case counts[imagePresent] == len(states):
		return nodeComplete
	case counts[imagePresent]+counts[imageJoining] == len(states), !d.heldAt.IsZero() && node.CreatedAt.After(d.heldAt):
		return nodeJoined
	case node.Down || counts[imageFailed] > 0:
		return nodeFailed
	}
	return nodeLacking
}

// stillLacks reports whether a node, which lacked images, lacks some still: then nothing has changed
// for who waits for it.
func (e Evidence) stillLacks(node *Node) bool {
	return e.demand.constraints.Fit(&node.Node) == scheduling.FitNow &&
		e.demand.met(node, make([]imageState, len(e.demand.images))) == nodeLacking
}

// selection returns whether a prefetch surely brings its images to a node as soon as that takes
// Pods. With replicas it need not choose that node.
func selection(prefetch *v1alpha1.ImagePrefetch) func(*Node) bool {
	if prefetch == nil {
		return func(*Node) bool { return true } // that it is missing is said elsewhere
	}
	spec := &prefetch.Spec
	constraints := scheduling.New(spec.NodeSelector, spec.NodeAffinity, spec.Tolerations)
	return func(node *Node) bool {
		return spec.Replicas == nil && constraints.Fit(&node.Node) != scheduling.FitNever
	}
}

// wantedImage is an image of a Pod template.
type wantedImage struct {
	// name is normalized. repository is the part of it before the tag or the digest.
	name, repository string
	// byDigest reports that the template names the digest.
	byDigest bool
	// digests are those that count: the one that is named, or those that ImagePrefetches of
	// the namespace resolved the tag to. With none of them nothing counts.
	digests []string
	// failed are nodes on which the ImagePrefetch that the workload names counts the image as failed,
	// as far as its status lists them; what the agent reports goes first.
	failed map[string]bool
}

// on reports how the image stands on a node.
func (w *wantedImage) on(node *Node, heldAt time.Time) imageState {
	state := imageUnasked
	images := node.Images[w.repository]
	for i := range images {
		image := &images[i]
		switch {
		case !w.means(image):
		case slices.Contains(w.digests, image.Present):
			return imagePresent
		case image.Failed:
			state = imageFailed
		case state == imageFailed:
		case !heldAt.IsZero() && image.JoinedAt.After(heldAt):
			state = imageJoining
		case state == imageUnasked:
			state = imageAbsent
		}
	}
	if (state == imageUnasked || state == imageAbsent) && w.failed[node.Name] {
		return imageFailed
	}
	return state
}

// means reports whether an image of a node, in the same repository, is the one that is wanted. What
// came for a tag has the name with the digest as well; what came for a digest has no tag
// (imageref.Reference.Names).
func (w *wantedImage) means(image *Image) bool {
	if !w.byDigest {
		return image.Name == w.name
	}
	return slices.Contains(w.digests, image.Present) || slices.Contains(w.digests, image.Digest)
}

// describe says what is missing, in numbers: "2 of 12 nodes that its Pods can run on still
// lack ghcr.io/org/app:v2; 1 failed, such as node-7".
func (e Evidence) describe() string {
	if e.Awaited == 0 {
		return "no node that its Pods can run on takes Pods now and is waited for" + e.excused()
	}
	text := fmt.Sprintf("%d of %d nodes that its Pods can run on still lack %s", e.Lacking+e.Failed, e.Awaited, list(e.Missing))
	if e.Failed > 0 {
		text += fmt.Sprintf("; %d failed, such as %s", e.Failed, e.Fails)
	}
	return text
}

// excused says which nodes were not waited for, in words that follow a number of nodes.
func (e Evidence) excused() string {
	var text string
	for _, group := range []struct {
		count int
		what  string
	}{{e.Failed, "failed"}, {e.Joined, "joined later"}, {e.Uncovered, "without a Sluice agent"}} {
		if group.count > 0 {
			text += fmt.Sprintf("; %d %s", group.count, group.what)
		}
	}
	return text
}
