// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/scheduling"
)

// Cluster is what the gate knows of the nodes, and of the namespace of one workload, at
// one moment. Nothing in it is changed.
type Cluster struct {
	// Nodes in any order.
	Nodes []Node
	// Prefetches are ImagePrefetches of the namespace, in any order: the one that the workload
	// names, and at least those that list one of [TagsOfOthers].
	Prefetches []*v1alpha1.ImagePrefetch
}

// Node is one node of the cluster, and what its agent says of images.
type Node struct {
	scheduling.Node
	// CreatedAt is when the node registered.
	CreatedAt time.Time
	// Uncovered reports that no agent is meant to run on the node, or that its runtime is
	// not supported: waiting cannot help there.
	Uncovered bool
	// Down reports that nothing can be had of the node's agent: it has been silent for too
	// long, or its runtime does not answer.
	Down bool
	// Images are those that the node is asked for, by repository ("ghcr.io/org/app"), as
	// [ImagesOn] reads them: a decision looks at thousands of nodes, each with hundreds of images.
	Images map[string][]Image
}

// Image is an image that a node is asked for, and how far its agent is.
type Image struct {
	// Name is normalized. Digest is what the node is to have under it; empty while the node
	// resolves the tag.
	Name, Digest string
	// Present is the digest of what the agent reports Present under the name; empty if it
	// reports none.
	Present string
	// Failed reports that the agent has given up. A node that the mirror did not serve has
	// not: it is asked again.
	Failed bool
	// JoinedAt is when the node was asked for the image of a running prefetch, as it began to
	// take Pods; zero if it was there from the beginning.
	JoinedAt time.Time
}

// ImagesOn reads a NodeImageSet. What its spec does not ask for any more is left out,
// because nothing keeps it on the node.
func ImagesOn(set *v1alpha1.NodeImageSet) map[string][]Image {
	reported := make(map[string]*v1alpha1.NodeImageStatus, len(set.Status.Images))
	for i := range set.Status.Images {
		reported[set.Status.Images[i].Name] = &set.Status.Images[i]
	}
	images := make(map[string][]Image, len(set.Spec.ImageSet))
	for i := range set.Spec.ImageSet {
		asked := &set.Spec.ImageSet[i]
		image := Image{Name: asked.Name, Digest: asked.Digest}
		if asked.JoinedAt != nil {
			image.JoinedAt = asked.JoinedAt.Time
		}
		if status := reported[asked.Name]; status != nil {
			switch status.State {
			case v1alpha1.ImagePresent:
				image.Present = status.Digest
			case v1alpha1.ImageFailed:
				image.Failed = asked.RegistryPolicy == v1alpha1.RegistryPolicyDefault || !v1alpha1.IsMirrorFailure(status.Reason)
			}
		}
		repository := repositoryOf(image.Name)
		images[repository] = append(images[repository], image)
	}
	return images
}

// repositoryOf is a normalized name without its tag or digest.
func repositoryOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') { // or it is a port
		name = name[:colon]
	}
	return name
}
