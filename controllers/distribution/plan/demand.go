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

// collectDemand collects what is required of an image on each node, and returns the nodes in order.
// Prefetches that share their nodes are merged once, and not once for each node.
func (pl *planner) collectDemand(im *image) []*node {
	var targets []*targetNodes
	prefetches := make(map[*targetNodes][]*prefetch)
	for _, pf := range im.prefetches {
		if prefetches[pf.targets] == nil {
			targets = append(targets, pf.targets)
		}
		prefetches[pf.targets] = append(prefetches[pf.targets], pf)
	}
	merged := make(map[[2]*requirements]*requirements)
	var demanding []*node
	for _, t := range targets {
		r := im.mergeRequirements(prefetches[t])
		add := func(n *node, desired bool) {
			demand := &pl.demands[n.index]
			if demand.requirements == nil {
				demanding = append(demanding, n)
				*demand = nodeDemand{requirements: r, desired: desired}
				return
			}
			pair := [2]*requirements{demand.requirements, r}
			if merged[pair] == nil {
				merged[pair] = demand.requirements.merge(r)
			}
			*demand = nodeDemand{requirements: merged[pair], desired: demand.desired || desired}
		}
		for _, n := range t.desired {
			add(n, true)
		}
		for _, n := range t.retained {
			add(n, false)
		}
	}
	slices.SortFunc(demanding, func(a, b *node) int { return cmp.Compare(a.index, b.index) })
	return demanding
}

// mergeRequirements merges what prefetches that share their nodes require of an image.
func (im *image) mergeRequirements(prefetches []*prefetch) *requirements {
	merged := &requirements{retention: v1alpha1.RetentionBestEffort}
	for _, pf := range prefetches {
		merged = merged.merge(&requirements{
			retryLimit: pf.RetryLimit,
			retention:  cmp.Or(pf.Retention, v1alpha1.RetentionPinned),
			secretRefs: pf.secretRefs(),
			resolved:   im.resolved[pf],
			unresolved: !im.resolved[pf],
		})
	}
	return merged
}

// merge meets both requirements: the longer retention, the more tries, the secrets of both.
func (r *requirements) merge(other *requirements) *requirements {
	merged := &requirements{
		retryLimit: max(r.retryLimit, other.retryLimit),
		retention:  r.retention,
		leftOut:    slices.Concat(r.leftOut, other.leftOut),
		resolved:   r.resolved || other.resolved,
		unresolved: r.unresolved || other.unresolved,
	}
	if other.retention == v1alpha1.RetentionPinned {
		merged.retention = v1alpha1.RetentionPinned
	}
	refs := slices.Concat(r.secretRefs, other.secretRefs)
	slices.SortFunc(refs, secretRef.compare)
	var secretsKey strings.Builder
	for _, ref := range refs {
		switch {
		case slices.Contains(merged.secrets, ref.secret):
		case len(merged.secrets) == maxSecrets:
			merged.leftOut = append(merged.leftOut, ref)
		default:
			merged.secretRefs, merged.secrets = append(merged.secretRefs, ref), append(merged.secrets, ref.secret)
			secretsKey.WriteString(string(ref.secret.Kind) + " " + ref.secret.Namespace + "/" + ref.secret.Name + " ")
			if !ref.secret.IsServiceAccount() {
				merged.namedSecrets++
			}
		}
	}
	merged.secretsKey = secretsKey.String()
	return merged
}

// compare orders the Secrets that prefetches name before their ServiceAccounts: these must not take
// the last places, because most of them name none.
func (ref secretRef) compare(other secretRef) int {
	return cmp.Or(
		trueFirst(!ref.secret.IsServiceAccount(), !other.secret.IsServiceAccount()),
		cmp.Compare(ref.prefetchIndex, other.prefetchIndex),
		cmp.Compare(ref.position, other.position),
	)
}

func (pf *prefetch) secretRefs() []secretRef {
	refs := make([]secretRef, 0, len(pf.PullSecrets))
	for position, secret := range pf.PullSecrets {
		refs = append(refs, secretRef{secret, pf.index, position})
	}
	return refs
}

// newEntry returns a spec entry that meets the requirements.
func (r *requirements) newEntry(name, digest string, policy v1alpha1.RegistryPolicy) *v1alpha1.NodeImage {
	return r.applyTo(&v1alpha1.NodeImage{Name: name, Digest: digest, RegistryPolicy: policy})
}

// applyTo returns a copy of an entry that meets the requirements.
func (r *requirements) applyTo(entry *v1alpha1.NodeImage) *v1alpha1.NodeImage {
	renewed := *entry
	renewed.ImageDownloadRetryLimit = &r.retryLimit
	renewed.Retention = r.retention
	renewed.ImagePullSecrets = r.secretsFor(entry)
	return &renewed
}

// secretsFor are the secrets of an entry. A node that asks the mirror alone sends nobody credentials.
func (r *requirements) secretsFor(entry *v1alpha1.NodeImage) []v1alpha1.PullSecretSource {
	if entry.RegistryPolicy != v1alpha1.RegistryPolicyDefault {
		return nil
	}
	return r.secrets
}

// match reports whether an entry asks for exactly what is required.
func (r *requirements) match(entry *v1alpha1.NodeImage) bool {
	return entry.Retention == r.retention && equalInt32(entry.ImageDownloadRetryLimit, &r.retryLimit) &&
		slices.Equal(entry.ImagePullSecrets, r.secretsFor(entry))
}
