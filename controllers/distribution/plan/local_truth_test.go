// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What is checked here of node-local images is worked out as in truth_test.go: from what the nodes
// found when they looked, and not from the plan.

// wanting is the nodes that a prefetch waited for at the last plan, and its images then.
type wanting struct {
	nodes  map[string]bool
	images []string
}

// awaits reports whether a prefetch waits for a node that can bring it something now.
func awaits(p *Prefetch, n *Node) bool { return wantedOn(p, n) && !n.DiskPressure }

// noteComers notes the nodes that may have come while an image was being brought to others. Which nodes
// a prefetch with replicas waits for is the plan's choice, so that any of them may have come.
func (c *fakeCluster) noteComers() {
	now := make(map[string]wanting)
	for key, p := range c.prefetches {
		w := wanting{make(map[string]bool), slices.Clone(p.Images)}
		last, known := c.wanting[key]
		for name, m := range c.machines {
			w.nodes[name] = awaits(p, &m.node)
			for _, image := range p.Images {
				if w.nodes[name] && (p.Replicas != nil || known && !last.nodes[name] && slices.Contains(last.images, image)) {
					c.came[name+" "+image] = true
				}
			}
		}
		now[key] = w
	}
	c.wanting = now
}

// goesByItsNodes reports whether a prefetch asks nodes, and no registry, what an image is.
func goesByItsNodes(p *Prefetch, image string) bool {
	return p.Refresh == "" && slices.Contains(p.NodeLocal, image)
}

// localViolation says what a plan has made of a node-local image that the nodes have not said, given what
// the controller saw before it.
func (c *fakeCluster) localViolation(seen State) string {
	for i := range seen.Prefetches {
		p := &seen.Prefetches[i]
		for _, image := range p.Images {
			digest := c.prefetches[p.Key].Resolved[image].Digest
			if !goesByItsNodes(p, image) || p.Resolved[image].Digest != "" || digest == "" {
				continue
			}
			if err := c.decidedWithoutNodes(seen, p, image, digest); err != "" {
				return fmt.Sprintf("%s takes %s for %s, but %s", p.Key, image, digest, err)
			}
		}
	}
	for i := range seen.Nodes {
		if err := c.toldWithoutCause(seen, &seen.Nodes[i]); err != "" {
			return err
		}
	}
	return ""
}

// decidedWithoutNodes says which node has not said that an image is that digest. If it was known before
// what the image is, it says which node has said otherwise.
func (c *fakeCluster) decidedWithoutNodes(seen State, p *Prefetch, image, digest string) string {
	known := len(c.answers[image]) > 0 ||
		slices.ContainsFunc(seen.Prefetches, func(p Prefetch) bool { return p.Resolved[image].Digest != "" }) ||
		slices.ContainsFunc(seen.Nodes, func(n Node) bool {
			return n.Entries[image].Wanted != nil && n.Entries[image].Wanted.Digest != ""
		})
	said := false
	for i := range seen.Nodes {
		n := &seen.Nodes[i]
		found, answered := c.machines[n.Name].reported[image]
		said = said || answered && found == digest
		wanted := n.Entries[image].Wanted
		switch {
		case !c.mustBeAsked(p, n, image):
		case !known && (!answered || found != digest):
			return fmt.Sprintf("%s has found %q (it has said so: %t)", n.Name, found, answered)
		case known && answered && found != "" && found != digest && wanted != nil && wanted.RegistryPolicy == v1alpha1.RegistryPolicyLocal:
			return fmt.Sprintf("%s has said %q", n.Name, found)
		}
	}
	if !known && !said {
		return "no node has said that"
	}
	return ""
}

// mustBeAsked reports whether a node beyond doubt has a say in what an image of a prefetch is.
func (c *fakeCluster) mustBeAsked(p *Prefetch, n *Node, image string) bool {
	answers := n.Acknowledged && !c.machines[n.Name].dead ||
		!n.Acknowledged && (n.HeardAt.IsZero() || c.now.Before(n.HeardAt.Add(c.limits.AgentTimeout)))
	return awaits(p, n) && !n.RuntimeDown && answers && !c.came[n.Name+" "+image]
}

// toldWithoutCause says what a node is to fetch of a node-local image although no prefetch that waits for
// the node knows what the image is, and what it is to fetch from a registry although nobody has the
// registry asked.
func (c *fakeCluster) toldWithoutCause(seen State, n *Node) string {
	m := c.machines[n.Name]
	for image, entry := range m.spec {
		of := c.prefetchesOf(image)
		if !c.isOnlyOnNodes(image) {
			continue
		}
		was := n.Entries[image].Wanted
		if entry.RegistryPolicy == v1alpha1.RegistryPolicyDefault && (was == nil || was.RegistryPolicy != v1alpha1.RegistryPolicyDefault) {
			return fmt.Sprintf("%s is to ask the registry for %s", n.Name, image)
		}
		isNew := entry.RegistryPolicy == v1alpha1.RegistryPolicyMirror && (was == nil || was.Digest != entry.Digest)
		if isNew && m.reported[image] != entry.Digest && m.content[image] != entry.Digest && !slices.ContainsFunc(of, func(p *Prefetch) bool { return wantedOn(p, n) && p.Resolved[image].Digest == entry.Digest }) {
			return fmt.Sprintf("%s is to get %s as %s, which nobody there wants", n.Name, image, entry.Digest)
		}
	}
	return ""
}

// isOnlyOnNodes reports whether no prefetch has a registry asked for an image.
func (c *fakeCluster) isOnlyOnNodes(image string) bool {
	of := c.prefetchesOf(image)
	return len(of) > 0 && !slices.ContainsFunc(of, func(p *Prefetch) bool { return !goesByItsNodes(p, image) })
}

func (c *fakeCluster) prefetchesOf(image string) (of []*Prefetch) {
	for _, p := range c.prefetches {
		if slices.Contains(p.Images, image) {
			of = append(of, p)
		}
	}
	return of
}

// importEverywhere has every machine have the same image under a name: the one that prefetches know
// already, if they know one. The registry says the same to those that ask it.
func (c *fakeCluster) importEverywhere(image string) {
	digest := "sha256:" + image + "-imported"
	c.plan()
	for _, p := range c.prefetchesOf(image) {
		if record := p.Resolved[image]; record.Digest != "" && record.Refresh == p.Refresh {
			digest = record.Digest
		}
	}
	c.tags[image], c.imported[image] = digest, digest
	for _, m := range c.machines {
		m.content[image] = digest
	}
	c.round() // what nodes had before is not what they say from here on
}
