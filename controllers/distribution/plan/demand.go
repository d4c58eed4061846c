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
	name    string
	wanters []*prefetch
	found   []foundEntry
	digest  string // what nodes shall hold; empty until resolved
	settled map[*prefetch]bool
	asking  []string // marks to be answered, sorted
	current map[string]bool
	seats   []*seat  // by node
	groups  []*group // by platform
	memory  recollection
	// refused by the registry for good; withoutMirror as in Outcome.
	refused, withoutMirror bool
}

// foundEntry is an entry that some node has of an image.
type foundEntry struct {
	node  *node
	entry Entry
}

// terms are how an image is wanted on a node.
type terms struct {
	retryLimit int32
	retention  v1alpha1.RetentionPolicy
	keys       []key
	left       []key // those beyond the bound
	secrets    []v1alpha1.NamespacedSecretReference
	access     string // secrets in one comparable piece
	// settled: a prefetch that knows its digest wants it; asking: one that does not yet.
	settled, asking bool
}

// key is a Secret, and where it stands: the credentials are tried in the order of the
// spec, as the kubelet does, and those of several prefetches in the order of these.
type key struct {
	secret       v1alpha1.NamespacedSecretReference
	owner, place int
}

func (p *prefetch) keys() []key {
	keys := make([]key, 0, len(p.PullSecrets))
	for place, secret := range p.PullSecrets {
		keys = append(keys, key{secret, p.index, place})
	}
	return keys
}

// claim is the terms for one node while they are collected.
type claim struct {
	terms   *terms
	desired bool
}

// listImages finds every image that somebody wants or some node's spec names.
func (d *draft) listImages(memory Memory) {
	images := make(map[string]*image)
	get := func(name string) *image {
		im, ok := images[name]
		if !ok {
			im = &image{name: name, settled: make(map[*prefetch]bool)}
			images[name] = im
			d.images = append(d.images, im)
		}
		return im
	}
	for _, p := range d.prefetches {
		for _, name := range p.Images {
			im := get(name)
			im.wanters = append(im.wanters, p)
		}
	}
	for _, n := range d.nodes {
		for name, entry := range n.Entries {
			n.answers = n.answers || entry.Status != nil
			n.turnedAt = latest(n.turnedAt, d.turnedAt(entry))
			if images[name] != nil || entry.Wanted != nil {
				im := get(name)
				im.found = append(im.found, foundEntry{n, entry})
			}
		}
	}
	slices.SortFunc(d.images, func(a, b *image) int { return strings.Compare(a.name, b.name) })
	for _, im := range d.images {
		im.memory = recall(memory, im)
	}
}

// termsOf merges what the prefetches of one scope ask.
func (im *image) termsOf(prefetches []*prefetch) *terms {
	merged := &terms{retention: v1alpha1.RetentionBestEffort}
	for _, p := range prefetches {
		merged = merged.merge(&terms{
			retryLimit: p.RetryLimit,
			retention:  cmp.Or(p.Retention, v1alpha1.RetentionPinned),
			keys:       p.keys(),
			settled:    im.settled[p],
			asking:     !im.settled[p],
		})
	}
	return merged
}

// merge gives each of two what it asks: the longer retention, the more tries, both
// lots of secrets.
func (t *terms) merge(other *terms) *terms {
	merged := &terms{
		retryLimit: max(t.retryLimit, other.retryLimit),
		retention:  t.retention,
		left:       slices.Concat(t.left, other.left),
		settled:    t.settled || other.settled,
		asking:     t.asking || other.asking,
	}
	if other.retention == v1alpha1.RetentionPinned {
		merged.retention = v1alpha1.RetentionPinned
	}
	keys := slices.Concat(t.keys, other.keys)
	slices.SortFunc(keys, func(a, b key) int { return cmp.Or(cmp.Compare(a.owner, b.owner), cmp.Compare(a.place, b.place)) })
	var access strings.Builder
	for _, k := range keys {
		switch {
		case slices.Contains(merged.secrets, k.secret):
		case len(merged.secrets) == maxSecrets:
			merged.left = append(merged.left, k)
		default:
			merged.keys, merged.secrets = append(merged.keys, k), append(merged.secrets, k.secret)
			access.WriteString(k.secret.Namespace + "/" + k.secret.Name + " ")
		}
	}
	merged.access = access.String()
	return merged
}

// entry is the spec entry under these terms.
func (t *terms) entry(name, digest string, policy v1alpha1.RegistryPolicy) *v1alpha1.NodeImage {
	return t.renew(&v1alpha1.NodeImage{Name: name, Digest: digest, RegistryPolicy: policy})
}

// renew is an entry as it was, under these terms.
func (t *terms) renew(entry *v1alpha1.NodeImage) *v1alpha1.NodeImage {
	renewed := *entry
	renewed.ImageDownloadRetryLimit = &t.retryLimit
	renewed.Retention = t.retention
	renewed.ImagePullSecrets = t.secrets
	return &renewed
}

// asked says that an entry asks for no more and no less than these terms do.
func (t *terms) asked(entry *v1alpha1.NodeImage) bool {
	return entry.Retention == t.retention && equal(entry.ImageDownloadRetryLimit, &t.retryLimit) &&
		slices.Equal(entry.ImagePullSecrets, t.secrets)
}

// claim collects the terms of an image for each node, and returns the nodes in order.
// Prefetches that share a scope are merged once, not once a node.
func (d *draft) claim(im *image) []*node {
	var scopes []*scope
	wanters := make(map[*scope][]*prefetch)
	for _, p := range im.wanters {
		if wanters[p.scope] == nil {
			scopes = append(scopes, p.scope)
		}
		wanters[p.scope] = append(wanters[p.scope], p)
	}
	merged := make(map[[2]*terms]*terms)
	var touched []*node
	for _, s := range scopes {
		t := im.termsOf(wanters[s])
		add := func(n *node, desired bool) {
			c := &d.claims[n.index]
			if c.terms == nil {
				touched = append(touched, n)
				*c = claim{terms: t, desired: desired}
				return
			}
			pair := [2]*terms{c.terms, t}
			if merged[pair] == nil {
				merged[pair] = c.terms.merge(t)
			}
			*c = claim{terms: merged[pair], desired: c.desired || desired}
		}
		for _, n := range s.desired {
			add(n, true)
		}
		for _, n := range s.kept {
			add(n, false)
		}
	}
	slices.SortFunc(touched, func(a, b *node) int { return cmp.Compare(a.index, b.index) })
	return touched
}
