// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var teamA = Namespace{Name: "team-a", Labels: map[string]string{"team": "a"}}

func patterns(texts ...string) []v1alpha1.RepositoryPattern {
	var all []v1alpha1.RepositoryPattern
	for _, text := range texts {
		all = append(all, v1alpha1.RepositoryPattern(text))
	}
	return all
}

func images(names ...string) *v1alpha1.ImagePrefetchSpec {
	spec := &v1alpha1.ImagePrefetchSpec{}
	for _, name := range names {
		spec.Images = append(spec.Images, v1alpha1.ImageReference(name))
	}
	return spec
}

// policyFor selects the namespaces of a team; of every one if team is empty.
func policyFor(name, team string, spec v1alpha1.PrefetchPolicySpec) v1alpha1.PrefetchPolicy {
	if team != "" {
		spec.NamespaceSelector = metav1.LabelSelector{MatchLabels: map[string]string{"team": team}}
	}
	return v1alpha1.PrefetchPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

// brokenSelector is a policy that the webhook rejects.
func brokenSelector(name string) v1alpha1.PrefetchPolicy {
	return v1alpha1.PrefetchPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.PrefetchPolicySpec{
		NamespaceSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: "Like"}}}}}
}

func TestEvaluate(t *testing.T) {
	allowOrg := policyFor("org", "a", v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("ghcr.io/org/**")})
	allowHub := policyFor("hub", "", v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("docker.io/library/*")})
	denyBad := policyFor("deny", "", v1alpha1.PrefetchPolicySpec{DeniedRepositories: patterns("ghcr.io/org/bad/**")})
	digests := policyFor("digests", "", v1alpha1.PrefetchPolicySpec{RequireDigest: ptr.To(true)})
	others := policyFor("others", "b", v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("*/**"), DeniedRepositories: patterns("docker.io/**")})
	withReplicas := func(n int32, names ...string) *v1alpha1.ImagePrefetchSpec {
		spec := images(names...)
		spec.Replicas = &n
		return spec
	}

	for _, tt := range []struct {
		reason   string
		spec     *v1alpha1.ImagePrefetchSpec
		policies []v1alpha1.PrefetchPolicy
		fallback Default
		// want has, for each violation in order, what its text must have, separated by "|".
		want []string
	}{
		{"no policy and Allow lets everything through", images("nginx"), nil, DefaultAllow, nil},
		{"no policy and Deny lets nothing through, and says so", images("nginx"), nil, DefaultDeny,
			[]string{`spec.images[0]|"nginx"|no PrefetchPolicy selects namespace "team-a"|ask`}},
		{"a default that is not set denies", images("nginx"), nil, "", []string{"spec.images[0]"}},
		{"what does not parse is denied also without policies", images("nginx", "ghcr.io/Org/app"), nil, DefaultAllow,
			[]string{`spec.images[1]|"ghcr.io/Org/app"`}},
		{"a policy that selects other namespaces is none", images("nginx"), []v1alpha1.PrefetchPolicy{others}, DefaultDeny,
			[]string{"no PrefetchPolicy selects"}},
		{"another namespace's denial does not bind", images("nginx"), []v1alpha1.PrefetchPolicy{others}, DefaultAllow, nil},
		{"selected, the default does not count", images("nginx"), []v1alpha1.PrefetchPolicy{allowOrg}, DefaultAllow,
			[]string{`spec.images[0]|"nginx"|docker.io/library/nginx|ghcr.io/org/**|ask|"org"`}},
		{"what any policy allows is allowed", images("nginx", "ghcr.io/org/app:v1"), []v1alpha1.PrefetchPolicy{allowOrg, allowHub}, DefaultDeny, nil},
		{"what one denies stays denied", images("ghcr.io/org/bad/app", "ghcr.io/org/app"), []v1alpha1.PrefetchPolicy{allowOrg, denyBad}, DefaultDeny,
			[]string{`spec.images[0]|"deny" denies "ghcr.io/org/bad/**"`}},
		{"what one denies stays denied in another spelling", images("GHCR.io:443/org/bad/app"),
			[]v1alpha1.PrefetchPolicy{policyFor("all", "", v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("*/**")}), denyBad}, DefaultDeny,
			[]string{`"deny" denies`}},
		{
			reason:   "all violations at once",
			spec:     images("nginx", "ghcr.io/org/app", "quay.io/x/y", "ghcr.io/org/bad/z"),
			policies: []v1alpha1.PrefetchPolicy{allowOrg, denyBad},
			fallback: DefaultDeny,
			want:     []string{"spec.images[0]", "spec.images[2]", "spec.images[3]"},
		},
		{"a policy that allows nothing allows nothing", images("nginx"), []v1alpha1.PrefetchPolicy{digests}, DefaultAllow,
			[]string{"prefetch from: nothing"}},
		{
			reason:   "a digest asked for by one policy is asked for of every image",
			spec:     images("ghcr.io/org/app:v1", "ghcr.io/org/app"+digest),
			policies: []v1alpha1.PrefetchPolicy{allowOrg, digests},
			fallback: DefaultDeny,
			want:     []string{`spec.images[0]|"digests" asks for a digest|ghcr.io/org/app@sha256:`},
		},
		{"a tag beside the digest does no harm", images("ghcr.io/org/app:v1" + digest), []v1alpha1.PrefetchPolicy{allowOrg, digests}, DefaultDeny, nil},
		{
			reason: "the tightest maxImages binds",
			spec:   images("ghcr.io/org/a", "ghcr.io/org/b", "ghcr.io/org/c"),
			policies: []v1alpha1.PrefetchPolicy{
				allowOrg,
				policyFor("loose", "", v1alpha1.PrefetchPolicySpec{MaxImages: ptr.To[int32](9)}),
				policyFor("tight", "", v1alpha1.PrefetchPolicySpec{MaxImages: ptr.To[int32](2)}),
			},
			fallback: DefaultDeny,
			want:     []string{`spec.images: |"tight" allows 2 images|has 3`},
		},
		{
			reason: "of two that are as tight, the first by name is named",
			spec:   images("ghcr.io/org/a", "ghcr.io/org/b", "ghcr.io/org/c"),
			policies: []v1alpha1.PrefetchPolicy{
				allowOrg,
				policyFor("tight", "", v1alpha1.PrefetchPolicySpec{MaxImages: ptr.To[int32](2)}),
				policyFor("as-tight", "", v1alpha1.PrefetchPolicySpec{MaxImages: ptr.To[int32](2)}),
			},
			fallback: DefaultDeny,
			want:     []string{`spec.images: |"as-tight" allows 2 images`},
		},
		{"as many images as maxImages pass", images("ghcr.io/org/a", "ghcr.io/org/b"), []v1alpha1.PrefetchPolicy{allowOrg,
			policyFor("tight", "", v1alpha1.PrefetchPolicySpec{MaxImages: ptr.To[int32](2)})}, DefaultDeny, nil},
		{
			reason:   "maxNodes asks for replicas",
			spec:     images("ghcr.io/org/a"),
			policies: []v1alpha1.PrefetchPolicy{allowOrg, policyFor("nodes", "", v1alpha1.PrefetchPolicySpec{MaxNodes: ptr.To[int32](3)})},
			fallback: DefaultDeny,
			want:     []string{`spec.replicas|set replicas to 3 or less`},
		},
		{
			reason:   "maxNodes bounds replicas",
			spec:     withReplicas(4, "ghcr.io/org/a"),
			policies: []v1alpha1.PrefetchPolicy{allowOrg, policyFor("nodes", "", v1alpha1.PrefetchPolicySpec{MaxNodes: ptr.To[int32](3)})},
			fallback: DefaultDeny,
			want:     []string{`spec.replicas|"nodes" allows 3 nodes, not 4`},
		},
		{
			reason:   "replicas within maxNodes pass",
			spec:     withReplicas(3, "ghcr.io/org/a"),
			policies: []v1alpha1.PrefetchPolicy{allowOrg, policyFor("nodes", "", v1alpha1.PrefetchPolicySpec{MaxNodes: ptr.To[int32](3)})},
			fallback: DefaultDeny,
		},
		{
			reason: "a broken pattern that was written without the webhook allows nothing",
			spec:   images("ghcr.io/org-evil/app", "org/app"),
			policies: []v1alpha1.PrefetchPolicy{policyFor("p", "", v1alpha1.PrefetchPolicySpec{
				AllowedRepositories: patterns("ghcr.io/org*/app", "ghcr.io/org*", "*/org/**", "", "/", "*./app"),
			})},
			fallback: DefaultAllow,
			want:     []string{"spec.images[0]", "spec.images[1]"},
		},
		{"a broken pattern that was to deny, written without the webhook, denies everything", images("ghcr.io/org/app"),
			[]v1alpha1.PrefetchPolicy{allowOrg, policyFor("p", "", v1alpha1.PrefetchPolicySpec{DeniedRepositories: patterns("evil")})}, DefaultAllow,
			[]string{`PrefetchPolicy "p" cannot be understood|"evil"|spec.deniedRepositories[0]`}},
		{"a broken selector that was written without the webhook denies everything", images("ghcr.io/org/app"),
			[]v1alpha1.PrefetchPolicy{allowOrg, brokenSelector("p")}, DefaultAllow,
			[]string{`PrefetchPolicy "p" cannot be understood|spec.namespaceSelector`}},
		{"of two broken selectors, the first by name is named", images("ghcr.io/org/app"),
			[]v1alpha1.PrefetchPolicy{brokenSelector("q"), brokenSelector("p")}, DefaultAllow,
			[]string{`PrefetchPolicy "p" cannot be understood`}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			got := Evaluate(teamA, tt.spec, tt.policies, tt.fallback)
			if len(got) != len(tt.want) {
				t.Fatalf("%d violations, want %d: %v", len(got), len(tt.want), got)
			}
			for i, err := range got {
				for part := range strings.SplitSeq(tt.want[i], "|") {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("violation %d is %q, want %q in it", i, err, part)
					}
				}
			}
			slices.Reverse(tt.policies)
			if again := Evaluate(teamA, tt.spec, tt.policies, tt.fallback); fmt.Sprint(again) != fmt.Sprint(got) {
				t.Errorf("with the policies in another order: %v, before: %v", again, got)
			}
		})
	}
}

func TestMessagesNameTheContacts(t *testing.T) {
	of := func(name, contact string) v1alpha1.PrefetchPolicy {
		policy := policyFor(name, "", v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("ghcr.io/org/**")})
		if contact != "" {
			policy.Annotations = map[string]string{v1alpha1.ContactAnnotation: contact}
		}
		return policy
	}
	for _, tt := range []struct {
		reason   string
		policies []v1alpha1.PrefetchPolicy
		want     string
	}{
		{"the one", []v1alpha1.PrefetchPolicy{of("p", "#platform on chat")}, "; ask #platform on chat"},
		{"each once, in order", []v1alpha1.PrefetchPolicy{of("p", "#platform on chat"), of("q", "#apps on chat"), of("r", "#platform on chat")},
			"; ask #apps on chat, #platform on chat"},
		{"policies are named only if none has a contact", []v1alpha1.PrefetchPolicy{of("p", ""), of("q", "#apps on chat")}, "; ask #apps on chat"},
		{"an administrator where none has", []v1alpha1.PrefetchPolicy{of("p", ""), of("q", "")},
			`; ask an administrator of the cluster about PrefetchPolicy "p", "q"`},
	} {
		if got := Evaluate(teamA, images("nginx"), tt.policies, DefaultDeny).ToAggregate().Error(); !strings.HasSuffix(got, tt.want) {
			t.Errorf("%s: %s, want it to end with %q", tt.reason, got, tt.want)
		}
	}
}

func TestMessagesAreBounded(t *testing.T) {
	for _, tt := range []struct {
		patterns int
		want     string
	}{
		{maxListed, "ghcr.io/org/app-007; ask"},
		{maxListed + 1, "ghcr.io/org/app-007 and 1 more; ask"},
		{256, "ghcr.io/org/app-007 and 248 more; ask"},
	} {
		policy := policyFor("p", "", v1alpha1.PrefetchPolicySpec{})
		for i := range tt.patterns {
			policy.Spec.AllowedRepositories = append(policy.Spec.AllowedRepositories, v1alpha1.RepositoryPattern(fmt.Sprintf("ghcr.io/org/app-%03d", i)))
		}
		got := Evaluate(teamA, images("nginx"), []v1alpha1.PrefetchPolicy{policy}, DefaultDeny).ToAggregate().Error()
		if !strings.Contains(got, tt.want) {
			t.Errorf("of %d patterns it lists: %s", tt.patterns, got)
		}
	}
}

func TestValidate(t *testing.T) {
	spec := v1alpha1.PrefetchPolicySpec{
		NamespaceSelector:   metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: metav1.LabelSelectorOpIn}}},
		AllowedRepositories: patterns("ghcr.io/org/**", "nginx", "quay.io/bad/app"), // which two deny
		DeniedRepositories:  patterns("ghcr.io/org/bad", "ghcr.io/org:v1", "quay.io/**", "quay.io/bad/*", "nginx"),
	}
	var got []string
	for _, err := range Validate(&spec) {
		got = append(got, err.Field)
	}
	want := []string{
		"spec.namespaceSelector.matchExpressions[0].values", "spec.deniedRepositories[1]", "spec.deniedRepositories[4]",
		"spec.allowedRepositories[1]", "spec.allowedRepositories[2]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q is invalid, want %q", got, want)
	}

	good := v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("*/**"), DeniedRepositories: patterns("docker.io/**")}
	if errs := Validate(&good); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestAPolicyThatAllowsNothingIsWarnedOf(t *testing.T) {
	if len(Warnings(&v1alpha1.PrefetchPolicySpec{})) != 1 {
		t.Error("no warning")
	}
	if got := Warnings(&v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("*/**")}); len(got) > 0 {
		t.Error(got)
	}
}

func TestUnchanged(t *testing.T) {
	withReplicas := func(n int32, names ...string) *v1alpha1.ImagePrefetchSpec {
		spec := images(names...)
		spec.Replicas = &n
		return spec
	}
	moreSecrets := images("a", "b")
	moreSecrets.ImagePullSecrets = []v1alpha1.SecretReference{{Name: "s"}}
	for _, tt := range []struct {
		reason        string
		before, after *v1alpha1.ImagePrefetchSpec
		want          bool
	}{
		{"the same", images("a", "b"), images("a", "b"), true},
		{"the list is a set", images("a", "b"), images("b", "a"), true},
		{"no policy denies secrets", images("a", "b"), moreSecrets, true},
		{"another image", images("a", "b"), images("a", "c"), false},
		{"one image less", images("a", "b"), images("a"), false},
		{"one image more", images("a"), images("a", "b"), false},
		{"replicas set", images("a"), withReplicas(1, "a"), false},
		{"replicas removed", withReplicas(1, "a"), images("a"), false},
		{"replicas changed", withReplicas(1, "a"), withReplicas(2, "a"), false},
		{"replicas the same", withReplicas(1, "a"), withReplicas(1, "a"), true},
	} {
		if got := Unchanged(tt.before, tt.after); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.reason, got, tt.want)
		}
	}
}

func TestParseDefault(t *testing.T) {
	for _, s := range []string{"Allow", "Deny"} {
		if d, err := ParseDefault(s); err != nil || string(d) != s {
			t.Errorf("ParseDefault(%q) = %q, %v", s, d, err)
		}
	}
	for _, s := range []string{"", "allow", "deny", "Maybe"} {
		if _, err := ParseDefault(s); err == nil {
			t.Errorf("ParseDefault(%q) is accepted", s)
		}
	}
}
