// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxSecrets is the bound that the API sets for one image of a node.
const maxSecrets = 64

// image is one image, what all prefetches together want of it, and how it stands.
type image struct {
	name           string
	prefetches     []*prefetch
	entries        []nodeEntry
	digest         string // what nodes shall hold; empty until resolved
	resolved       map[*prefetch]bool
	openRequestIDs []string // marks to be answered, sorted
	requestIDs     map[string]bool
	placements     []*placement     // by node
	groups         []*platformGroup // by platform
	history        imageHistory
	// refused by the registry for good; withoutMirror as in Outcome.
	refused, withoutMirror bool
}

// nodeEntry is an entry that some node has of an image.
type nodeEntry struct {
	node  *node
	entry Entry
}

// requirements are how an image is wanted on a node.
type requirements struct {
	retryLimit int32
	retention  v1alpha1.RetentionPolicy
	secretRefs []secretRef
	leftOut    []secretRef // those beyond the bound
	secrets    []v1alpha1.NamespacedSecretReference
	secretsKey string // secrets in one comparable piece
	// settled: a prefetch that knows its digest wants it; asking: one that does not yet.
	resolved, unresolved bool
}

// secretRef is a Secret, and where it stands: the credentials are tried in the order of the
// spec, as the kubelet does, and those of several prefetches in the order of these.
type secretRef struct {
	secret                  v1alpha1.NamespacedSecretReference
	prefetchIndex, position int
}

func (p *prefetch) secretRefs() []secretRef {
	keys := make([]secretRef, 0, len(p.PullSecrets))
	for place, secret := range p.PullSecrets {
		keys = append(keys, secretRef{secret, p.index, place})
	}
	return keys
}

// nodeDemand is the terms for one node while they are collected.
type nodeDemand struct {
	requirements *requirements
	desired      bool
}

// listImages finds every image that somebody wants or some node's spec names.
func (d *planner) listImages(memory Memory) {
	images := make(map[string]*image)
	get := func(name string) *image {
		im, ok := images[name]
		if !ok {
			im = &image{name: name, resolved: make(map[*prefetch]bool)}
			images[name] = im
			d.images = append(d.images, im)
		}
		return im
	}
	for _, p := range d.prefetches {
		for _, name := range p.Images {
			im := get(name)
			im.prefetches = append(im.prefetches, p)
		}
	}
	for _, n := range d.nodes {
		for name, entry := range n.Entries {
			n.agentKnown = n.agentKnown || entry.Status != nil
			n.slotProgressAt = latest(n.slotProgressAt, d.slotProgressAt(entry))
			if images[name] != nil || entry.Wanted != nil {
				im := get(name)
				im.entries = append(im.entries, nodeEntry{n, entry})
			}
		}
	}
	slices.SortFunc(d.images, func(a, b *image) int { return strings.Compare(a.name, b.name) })
	for _, im := range d.images {
		im.history = historyOf(memory, im)
	}
}

// mergeRequirements merges what the prefetches of one scope ask.
func (im *image) mergeRequirements(prefetches []*prefetch) *requirements {
	merged := &requirements{retention: v1alpha1.RetentionBestEffort}
	for _, p := range prefetches {
		merged = merged.merge(&requirements{
			retryLimit: p.RetryLimit,
			retention:  cmp.Or(p.Retention, v1alpha1.RetentionPinned),
			secretRefs: p.secretRefs(),
			resolved:   im.resolved[p],
			unresolved: !im.resolved[p],
		})
	}
	return merged
}

// merge gives each of two what it asks: the longer retention, the more tries, both
// lots of secrets.
func (t *requirements) merge(other *requirements) *requirements {
	merged := &requirements{
		retryLimit: max(t.retryLimit, other.retryLimit),
		retention:  t.retention,
		leftOut:    slices.Concat(t.leftOut, other.leftOut),
		resolved:   t.resolved || other.resolved,
		unresolved: t.unresolved || other.unresolved,
	}
	if other.retention == v1alpha1.RetentionPinned {
		merged.retention = v1alpha1.RetentionPinned
	}
	keys := slices.Concat(t.secretRefs, other.secretRefs)
	slices.SortFunc(keys, func(a, b secretRef) int {
		return cmp.Or(cmp.Compare(a.prefetchIndex, b.prefetchIndex), cmp.Compare(a.position, b.position))
	})
	var access strings.Builder
	for _, k := range keys {
		switch {
		case slices.Contains(merged.secrets, k.secret):
		case len(merged.secrets) == maxSecrets:
			merged.leftOut = append(merged.leftOut, k)
		default:
			merged.secretRefs, merged.secrets = append(merged.secretRefs, k), append(merged.secrets, k.secret)
			access.WriteString(k.secret.Namespace + "/" + k.secret.Name + " ")
		}
	}
	merged.secretsKey = access.String()
	return merged
}

// newEntry is the spec entry under these terms.
func (t *requirements) newEntry(name, digest string, policy v1alpha1.RegistryPolicy) *v1alpha1.NodeImage {
	return t.applyTo(&v1alpha1.NodeImage{Name: name, Digest: digest, RegistryPolicy: policy})
}

// applyTo is an entry as it was, under these terms.
func (t *requirements) applyTo(entry *v1alpha1.NodeImage) *v1alpha1.NodeImage {
	renewed := *entry
	renewed.ImageDownloadRetryLimit = &t.retryLimit
	renewed.Retention = t.retention
	renewed.ImagePullSecrets = t.secrets
	return &renewed
}

// matches says that an entry asks for no more and no less than these terms do.
func (t *requirements) matches(entry *v1alpha1.NodeImage) bool {
	return entry.Retention == t.retention && equalInt32(entry.ImageDownloadRetryLimit, &t.retryLimit) &&
		slices.Equal(entry.ImagePullSecrets, t.secrets)
}

// collectDemand collects the terms of an image for each node, and returns the nodes in order.
// Prefetches that share a scope are merged once, not once a node.
func (d *planner) collectDemand(im *image) []*node {
	var scopes []*targetNodes
	wanters := make(map[*targetNodes][]*prefetch)
	for _, p := range im.prefetches {
		if wanters[p.targets] == nil {
			scopes = append(scopes, p.targets)
		}
		wanters[p.targets] = append(wanters[p.targets], p)
	}
	merged := make(map[[2]*requirements]*requirements)
	var touched []*node
	for _, s := range scopes {
		t := im.mergeRequirements(wanters[s])
		add := func(n *node, desired bool) {
			c := &d.demands[n.index]
			if c.requirements == nil {
				touched = append(touched, n)
				*c = nodeDemand{requirements: t, desired: desired}
				return
			}
			pair := [2]*requirements{c.requirements, t}
			if merged[pair] == nil {
				merged[pair] = c.requirements.merge(t)
			}
			*c = nodeDemand{requirements: merged[pair], desired: c.desired || desired}
		}
		for _, n := range s.desired {
			add(n, true)
		}
		for _, n := range s.retained {
			add(n, false)
		}
	}
	slices.SortFunc(touched, func(a, b *node) int { return cmp.Compare(a.index, b.index) })
	return touched
}
