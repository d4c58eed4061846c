// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Default is what applies to a namespace that no PrefetchPolicy selects.
type Default string

const (
	// DefaultAllow lets such a namespace prefetch from everywhere.
	DefaultAllow Default = "Allow"
	// DefaultDeny lets it prefetch nothing.
	DefaultDeny Default = "Deny"
)

// ParseDefault reads a Default from a flag.
func ParseDefault(s string) (Default, error) {
	switch d := Default(s); d {
	case DefaultAllow, DefaultDeny:
		return d, nil
	}
	return "", fmt.Errorf("must be %s or %s, not %q", DefaultAllow, DefaultDeny, s)
}

// Namespace is what policies see of a namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// maxListed bounds the patterns that a message lists.
const maxListed = 8

// Evaluate returns everything that policies deny about spec in namespace: one error for each
// image and each limit, in the order of the spec; none if it is allowed. The order of the
// policies does not matter.
func Evaluate(namespace Namespace, spec *v1alpha1.ImagePrefetchSpec, policies []v1alpha1.PrefetchPolicy, fallback Default) field.ErrorList {
	rules := rulesFor(namespace, policies)
	path := field.NewPath("spec")
	var denied field.ErrorList
	for i, image := range spec.Images {
		if reason := rules.denyImage(string(image), fallback); reason != "" {
			denied = append(denied, field.Forbidden(path.Child("images").Index(i), reason))
		}
	}
	return append(denied, rules.denyLimits(path, spec)...)
}

// rules are the policies that select one namespace, by name.
type rules struct {
	namespace string
	policies  []*v1alpha1.PrefetchPolicy
	allowed   []rule
	denied    []rule
	// unusable are policies that cannot be understood, because they were written without the
	// webhook. What they were to deny is unknown, so nothing is allowed.
	unusable []unusable
}

// rule is one pattern of one policy.
type rule struct {
	pattern
	text   v1alpha1.RepositoryPattern
	policy *v1alpha1.PrefetchPolicy
}

// allows reports whether the pattern matches ref and can be understood. It checks the second
// after the first: the check is expensive, and a broken pattern, which was written without the
// webhook, hardly ever matches.
func (r rule) allows(ref imageref.Reference) bool {
	if !r.matches(ref) {
		return false
	}
	_, err := check(string(r.text))
	return err == nil
}

type unusable struct {
	policy *v1alpha1.PrefetchPolicy
	err    error
}

func rulesFor(namespace Namespace, policies []v1alpha1.PrefetchPolicy) rules {
	r := rules{namespace: namespace.Name}
	for i := range policies {
		policy := &policies[i]
		selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.NamespaceSelector)
		if err != nil {
			r.unusable = append(r.unusable, unusable{policy, fmt.Errorf("spec.namespaceSelector: %w", err)})
			continue
		}
		if selector.Matches(labels.Set(namespace.Labels)) {
			r.policies = append(r.policies, policy)
		}
	}
	byName := func(a, b *v1alpha1.PrefetchPolicy) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(r.policies, byName)
	slices.SortFunc(r.unusable, func(a, b unusable) int { return byName(a.policy, b.policy) })
	for _, policy := range r.policies {
		r.add(policy)
	}
	return r
}

func (r *rules) add(policy *v1alpha1.PrefetchPolicy) {
	for _, text := range policy.Spec.AllowedRepositories {
		if p, err := parse(string(text)); err == nil {
			r.allowed = append(r.allowed, rule{p, text, policy})
		}
	}
	for i, text := range policy.Spec.DeniedRepositories {
		p, err := check(string(text))
		if err != nil {
			r.unusable = append(r.unusable, unusable{policy, fmt.Errorf("spec.deniedRepositories[%d]: %q %w", i, text, err)})
			return
		}
		r.denied = append(r.denied, rule{p, text, policy})
	}
}

// denyImage returns why an image is not allowed; empty if it is.
func (r rules) denyImage(image string, fallback Default) string {
	ref, err := imageref.Parse(image)
	if err != nil {
		return fmt.Sprintf("%v: write it as in a Pod, such as ghcr.io/org/app:v2", err)
	}
	if len(r.unusable) > 0 {
		broken := r.unusable[0]
		return fmt.Sprintf("image %q: nothing is allowed while PrefetchPolicy %q cannot be understood (%v); %s",
			image, broken.policy.Name, broken.err, ask(broken.policy))
	}
	if len(r.policies) == 0 {
		if fallback == DefaultAllow {
			return ""
		}
		return fmt.Sprintf("image %q: no PrefetchPolicy selects namespace %q, and without one nothing is allowed; ask an administrator of the cluster for one",
			image, r.namespace)
	}
	for _, denied := range r.denied {
		if denied.matchesAnySpelling(ref) {
			return fmt.Sprintf("image %q: PrefetchPolicy %q denies %q; %s", image, denied.policy.Name, denied.text, ask(denied.policy))
		}
	}
	if !slices.ContainsFunc(r.allowed, func(allowed rule) bool { return allowed.allows(ref) }) {
		return fmt.Sprintf("image %q: %s is not among what namespace %q may prefetch from: %s; %s",
			image, ref.Repository(), r.namespace, r.listAllowed(), ask(r.policies...))
	}
	for _, policy := range r.policies {
		if policy.Spec.RequireDigest != nil && *policy.Spec.RequireDigest && ref.Digest() == "" {
			return fmt.Sprintf("image %q: PrefetchPolicy %q asks for a digest: write %s@sha256:…; %s", image, policy.Name, ref.Repository(), ask(policy))
		}
	}
	return ""
}

// denyLimits returns an error for each limit that spec exceeds. Of several policies, the error
// names the one with the tightest limit, and of several such the first by name.
func (r rules) denyLimits(path *field.Path, spec *v1alpha1.ImagePrefetchSpec) field.ErrorList {
	var over field.ErrorList
	if policy, limit := r.tightest(func(s *v1alpha1.PrefetchPolicySpec) *int32 { return s.MaxImages }); policy != nil && len(spec.Images) > int(limit) {
		over = append(over, field.Forbidden(path.Child("images"),
			fmt.Sprintf("PrefetchPolicy %q allows %d images in one ImagePrefetch, this one has %d; %s", policy.Name, limit, len(spec.Images), ask(policy))))
	}
	policy, limit := r.tightest(func(s *v1alpha1.PrefetchPolicySpec) *int32 { return s.MaxNodes })
	switch {
	case policy == nil:
	case spec.Replicas == nil:
		over = append(over, field.Required(path.Child("replicas"),
			fmt.Sprintf("PrefetchPolicy %q allows %d nodes: set replicas to %d or less; %s", policy.Name, limit, limit, ask(policy))))
	case *spec.Replicas > limit:
		over = append(over, field.Forbidden(path.Child("replicas"),
			fmt.Sprintf("PrefetchPolicy %q allows %d nodes, not %d; %s", policy.Name, limit, *spec.Replicas, ask(policy))))
	}
	return over
}

func (r rules) tightest(limit func(*v1alpha1.PrefetchPolicySpec) *int32) (*v1alpha1.PrefetchPolicy, int32) {
	var by *v1alpha1.PrefetchPolicy
	var least int32
	for _, policy := range r.policies {
		if l := limit(&policy.Spec); l != nil && (by == nil || *l < least) {
			by, least = policy, *l
		}
	}
	return by, least
}

func (r rules) listAllowed() string {
	var all []string
	for _, policy := range r.policies {
		for _, text := range policy.Spec.AllowedRepositories {
			all = append(all, string(text))
		}
	}
	slices.Sort(all)
	return list(slices.Compact(all))
}

func list(all []string) string {
	switch {
	case len(all) == 0:
		return "nothing"
	case len(all) > maxListed:
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxListed], ", "), len(all)-maxListed)
	}
	return strings.Join(all, ", ")
}

// ask names whom to ask about the policies.
func ask(policies ...*v1alpha1.PrefetchPolicy) string {
	var contacts, names []string
	for _, policy := range policies {
		if contact := policy.Annotations[v1alpha1.ContactAnnotation]; contact != "" {
			contacts = append(contacts, contact)
			continue
		}
		names = append(names, fmt.Sprintf("%q", policy.Name))
	}
	if len(contacts) > 0 {
		slices.Sort(contacts)
		return "ask " + list(slices.Compact(contacts))
	}
	return "ask an administrator of the cluster about PrefetchPolicy " + list(names)
}
