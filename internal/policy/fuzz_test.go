// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"regexp"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// insideByExpression reads the pattern language in a second, independent way: it makes a regular
// expression of the pattern, and matches it with the repository as the reference library names it.
func insideByExpression(text, image string) bool {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return false
	}
	var expression strings.Builder
	expression.WriteString(`\A`)
	rest := text
	switch {
	case text == "*/**":
		return true
	case strings.HasPrefix(text, "*."):
		expression.WriteString(`(?:[A-Za-z0-9-]+\.)+`)
		rest = text[2:]
	}
	for len(rest) > 0 {
		switch {
		case rest == "/**":
			expression.WriteString(`(?:/[a-z0-9._-]+)+`)
			rest = ""
		case strings.HasPrefix(rest, "*"):
			expression.WriteString(`[a-z0-9._-]+`)
			rest = rest[1:]
		default:
			expression.WriteString(regexp.QuoteMeta(rest[:1]))
			rest = rest[1:]
		}
	}
	expression.WriteString(`\z`)
	return regexp.MustCompile(expression.String()).MatchString(named.Name())
}

// FuzzWhatIsAdmittedIsInside tries pairs of pattern and image. A policy that allows this pattern
// alone admits the image if, and only if, the independent reading finds the image inside the
// pattern. A policy that denies the pattern never admits the image.
func FuzzWhatIsAdmittedIsInside(f *testing.F) {
	for _, text := range []string{
		"ghcr.io/org/**", "ghcr.io/org/app", "ghcr.io/*/app", "*.example.com/**", "*.example.com:5000/*", "docker.io/library/*",
		"docker.io/org/**", "registry:5000/app", "*/**", "[::1]:5000/**", "localhost/*/x/**", "nginx", "*", "*./x", "ghcr.io/**/x", "/x",
	} {
		for _, image := range []string{
			"nginx", "ghcr.io/org/app", "ghcr.io/org-evil/app", "ghcr.io.evil.com/org/app", "evil.com/ghcr.io/org/app", "GHCR.IO/org/app",
			"a.example.com:5000/x", "registry:5000/app", "[::1]:5000/a/b" + digest, "ghcr.io:443/org/app", "registry-1.docker.io/org/app",
			"localhost/a/x/b:v1", "ghcr.io/org/../app",
		} {
			f.Add(text, image)
		}
	}
	f.Fuzz(func(t *testing.T, text, image string) {
		spec := v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns(text)}
		admitted := len(Evaluate(teamA, images(image), []v1alpha1.PrefetchPolicy{policyFor("p", "", spec)}, DefaultDeny)) == 0
		valid := len(Validate(&spec)) == 0
		inside := valid && insideByExpression(text, image)
		switch {
		case valid && admitted != inside:
			t.Fatalf("pattern %q and image %q: admitted %t, inside %t", text, image, admitted, inside)
		case !valid && admitted:
			t.Fatalf("broken pattern %q admits image %q", text, image)
		}

		both := v1alpha1.PrefetchPolicySpec{AllowedRepositories: patterns("*/**", text), DeniedRepositories: patterns(text)}
		stillAdmitted := len(Evaluate(teamA, images(image), []v1alpha1.PrefetchPolicy{policyFor("p", "", both)}, DefaultDeny)) == 0
		if stillAdmitted && (admitted || !valid) {
			t.Fatalf("pattern %q denies image %q, which is admitted", text, image)
		}
	})
}
