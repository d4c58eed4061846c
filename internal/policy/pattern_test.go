// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/internal/imageref"
)

const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func mustCheck(t testing.TB, text string) pattern {
	t.Helper()
	p, err := check(text)
	if err != nil {
		t.Fatalf("pattern %q: %v", text, err)
	}
	return p
}

func TestAllowedPatternMatchesToTheLetter(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		inside  []string
		outside []string
	}{
		{"ghcr.io/org/app",
			[]string{"ghcr.io/org/app", "ghcr.io/org/app:v1", "ghcr.io/org/app" + digest, "ghcr.io/org/app:v1" + digest},
			[]string{"ghcr.io/org/app2", "ghcr.io/org/app/sub", "ghcr.io/org", "org/app", "ghcr.io:443/org/app", "GHCR.IO/org/app", "app",
				"docker.io/org/app", "ghcr.io.evil.com/org/app", "evil.com/ghcr.io/org/app", "xghcr.io/org/app", "ghcr.io/org/app-evil"}},
		{"ghcr.io/org/**",
			[]string{"ghcr.io/org/app", "ghcr.io/org/team/app:v1", "ghcr.io/org/a/b/c/d" + digest},
			[]string{"ghcr.io/org", "ghcr.io/org:v1", "ghcr.io/org-evil/app", "ghcr.io/orgevil/app", "ghcr.io/org.evil/app", "ghcr.io.evil.com/org/app",
				"evil.com/ghcr.io/org/app", "ghcr.io/evil/org/app", "ghcr.io:8080/org/app", "evil-ghcr.io/org/app", "evil.ghcr.io/org/app", "org/app"}},
		{"ghcr.io/*/app",
			[]string{"ghcr.io/org/app", "ghcr.io/other/app"},
			[]string{"ghcr.io/app", "ghcr.io/a/b/app", "ghcr.io/org/app/sub", "ghcr.io/org/other", "ghcr.io.evil.com/org/app"}},
		{"ghcr.io/*",
			[]string{"ghcr.io/app"},
			[]string{"ghcr.io/org/app"}},
		{"ghcr.io/*/**",
			[]string{"ghcr.io/org/app", "ghcr.io/org/a/b"},
			[]string{"ghcr.io/app"}},
		{"ghcr.io/**",
			[]string{"ghcr.io/app", "ghcr.io/org/app"},
			[]string{"ghcr.io.evil.com/app", "ghcr.io:443/app", "ghcr.ioo/app", "docker.io/ghcr.io/app"}},
		{
			pattern: "*.example.com/**",
			inside:  []string{"a.example.com/app", "a.b.example.com/org/app"},
			outside: []string{
				"example.com/app", "evilexample.com/app", "a.example.com.evil.com/app", "a.example.com:5000/app",
				"evil.com/a.example.com/app", "A.EXAMPLE.COM/app",
			},
		},
		{"*.example.com:5000/app",
			[]string{"a.example.com:5000/app"},
			[]string{"a.example.com/app", "example.com:5000/app", "a.example.com:50001/app", "a.example.com:5000/app/b"}},
		{"registry:5000/app",
			[]string{"registry:5000/app", "registry:5000/app:v1"},
			[]string{"registry:5001/app", "registry:05000/app", "registry/app", "registry:50000/app"}},
		{"docker.io/library/*",
			[]string{"nginx", "library/nginx", "docker.io/nginx", "index.docker.io/nginx", "docker.io/library/nginx"},
			[]string{"org/app", "registry-1.docker.io/library/nginx", "docker.io:443/library/nginx", "evil.com/library/nginx", "libraryx/nginx"}},
		{"docker.io/org/**",
			[]string{"org/app", "docker.io/org/app"},
			[]string{"org2/app", "app", "ghcr.io/org/app", "localhost/org/app", "org:5000/app", "Org/app", "docker.io.evil.com/org/app"}},
		{"localhost/**", []string{"localhost/app"}, []string{"localhost:5000/app", "localhost.evil.com/app"}},
		{"[::1]:5000/**", []string{"[::1]:5000/app"}, []string{"[::2]:5000/app", "[::1]/app"}},
		{"*/**", []string{"nginx", "ghcr.io/org/app", "registry:5000/app", "[::1]:5000/app", "GHCR.IO/org/app"}, nil},
	} {
		t.Run(tt.pattern, func(t *testing.T) {
			p := mustCheck(t, tt.pattern)
			for _, image := range tt.inside {
				if ref, err := imageref.Parse(image); err != nil || !p.matches(ref) {
					t.Errorf("%q is outside (%v)", image, err)
				}
			}
			for _, image := range tt.outside {
				if ref, err := imageref.Parse(image); err != nil || p.matches(ref) {
					t.Errorf("%q is inside (%v)", image, err)
				}
			}
		})
	}
}

func TestDeniedPatternMatchesEverySpellingOfARegistry(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		inside  []string
		outside []string
	}{
		{"ghcr.io/bad/**",
			[]string{"ghcr.io/bad/app", "GHCR.io/bad/app", "ghcr.io:443/bad/app", "ghcr.io:0443/bad/app", "ghcr.io:8080/bad/app" + digest},
			[]string{"ghcr.io/good/app", "ghcr.io/bad", "ghcr.io.example.com/bad/app", "registry-1.docker.io/bad/app"}},
		{
			pattern: "docker.io/bad/**",
			inside: []string{
				"bad/app", "index.docker.io/bad/app", "registry-1.docker.io/bad/app", "Registry-1.Docker.io:443/bad/app",
				"registry.hub.docker.com/bad/app", "docker.io:443/bad/app",
			},
			outside: []string{"good/app", "registry-1.docker.io/good/app", "quay.io/bad/app"},
		},
		{"registry.example.com:443/**", []string{"registry.example.com/app", "REGISTRY.example.com:0443/app"}, []string{"registry.example.com:5000/app"}},
		{"*.example.com/**", []string{"a.example.com:5000/app", "A.example.COM/app"}, []string{"example.com/app"}},
		{"[::1]:5000/**", []string{"[::1]:5000/app"}, []string{"[::1]/app", "[::1]:5001/app"}},
	} {
		t.Run(tt.pattern, func(t *testing.T) {
			p := mustCheck(t, tt.pattern)
			for _, image := range tt.inside {
				if ref, err := imageref.Parse(image); err != nil || !p.matchesAnySpelling(ref) {
					t.Errorf("%q escapes (%v)", image, err)
				}
			}
			for _, image := range tt.outside {
				if ref, err := imageref.Parse(image); err != nil || p.matchesAnySpelling(ref) {
					t.Errorf("%q is caught (%v)", image, err)
				}
			}
		})
	}
}

func TestCheckRejectsAndSaysWhatToWrite(t *testing.T) {
	for _, tt := range []struct{ pattern, says string }{
		{"", "name the registry"},
		{"*", `"*/**"`},
		{"**", `"*/**"`},
		{"nginx", `"docker.io/library/nginx"`},
		{"org/app", `"docker.io/org/app"`},
		{"org/**", `"docker.io/org/**"`},
		{"ghcr.io", `"ghcr.io/**"`},
		{"registry:5000", `"registry:5000/**"`},
		{"*/org/**", `"ghcr.io/org/**"`},
		{"*/app", `"ghcr.io/app"`},
		{"*./app", "only at the start"},
		{"*.*.com/app", "only at the start"},
		{"ghcr.*/app", "only at the start"},
		{"ghcr*/app", "only at the start"},
		{"**.example.com/app", "only at the start"},
		{"*example.com/app", "only at the start"},
		{"docker.io/nginx", `"docker.io/library/nginx"`},
		{"docker.io/*", `"docker.io/library/*"`},
		{"index.docker.io/org/app", `"docker.io/org/app"`},
		{"ghcr.io/org/app:v1", "tag"},
		{"ghcr.io/org/app" + digest, "digest"},
		{"https://ghcr.io/org/app", "scheme"},
		{"user@ghcr.io/org/app", "user name"},
		{"user:pass@ghcr.io/org/app", "user name"},
		{"GHCR.IO/org/app", "lower case"},
		{"ghcr.io/Org/app", "cannot match"},
		{"ghcr.io/org/", "cannot match"},
		{"ghcr.io//app", "cannot match"},
		{"/org/app", "cannot match"},
		{"ghcr.io/../app", "cannot match"},
		{"ghcr.io/./app", "cannot match"},
		{"ghcr.io/org/..", "cannot match"},
		{"ghcr.io./org/app", "cannot match"},
		{".ghcr.io/org/app", "cannot match"},
		{"ghcr.io/org/app-*", "whole segment"},
		{"ghcr.io/org/*app", "whole segment"},
		{"ghcr.io/***", "whole segment"},
		{"ghcr.io/**/app", "only at the end"},
		{"ghcr.io/**/**", "only at the end"},
		{"ghcr.io/org/äpp", "cannot match"},
		{"ghcr.іo/org/app", "cannot match"}, // a Cyrillic і
		{"ghcr.io／org/app", "cannot match"}, // a fullwidth solidus
		{"ghcr.io/org app", "cannot match"},
		{" ghcr.io/org/app", "cannot match"},
		{"ghcr.io/org/app\n", "cannot match"},
		{"ghcr.io/%2e%2e/app", "cannot match"},
		{"ghcr.io/org\\app", "cannot match"},
		{"ghcr.io/(org|evil)/app", "cannot match"},
		{"ghcr.io/org/?", "cannot match"},
		{"registry:port/app", "cannot match"},
		{"ghcr.io/" + strings.Repeat("a", 300), "cannot match"},
	} {
		t.Run(tt.pattern, func(t *testing.T) {
			_, err := check(tt.pattern)
			if err == nil {
				t.Fatal("is accepted")
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q: %v; want %q in it", tt.pattern, err, tt.says)
			}
		})
	}
}

func TestCoversOnlyWhatIsWhollyInside(t *testing.T) {
	for _, tt := range []struct {
		denied, allowed string
		want            bool
	}{
		{"ghcr.io/org/app", "ghcr.io/org/app", true},
		{"ghcr.io/org/**", "ghcr.io/org/app", true},
		{"ghcr.io/org/**", "ghcr.io/org/*", true},
		{"ghcr.io/org/**", "ghcr.io/org/**", true},
		{"ghcr.io/**", "ghcr.io/org/**", true},
		{"*/**", "ghcr.io/org/**", true},
		{"*/**", "*/**", true},
		{"*.example.com/**", "a.example.com/app", true},
		{"*.example.com/**", "*.a.example.com/**", true},
		{"ghcr.io/*/app", "ghcr.io/org/app", true},
		{"ghcr.io/org/app", "ghcr.io/org/*", false},
		{"ghcr.io/org/*", "ghcr.io/org/**", false},
		{"ghcr.io/org/**", "ghcr.io/**", false},
		{"ghcr.io/org/**", "ghcr.io/org", false},
		{"ghcr.io/*/**", "ghcr.io/**", false},
		{"ghcr.io/**", "*/**", false},
		{"*.example.com/**", "example.com/app", false},
		{"a.example.com/**", "*.example.com/**", false},
		{"*.a.example.com/**", "*.example.com/**", false},
	} {
		if got := mustCheck(t, tt.denied).covers(mustCheck(t, tt.allowed)); got != tt.want {
			t.Errorf("%q covers %q: %t, want %t", tt.denied, tt.allowed, got, tt.want)
		}
	}
}

func TestDenyingIsNeverNarrowerThanAllowing(t *testing.T) {
	for _, text := range []string{
		"ghcr.io/org/**", "registry:5000/app", "*.example.com/**", "docker.io/library/*", "*/**", "[::1]:5000/**",
		"registry.example.com:443/app",
	} {
		p := mustCheck(t, text)
		ref, err := imageref.Parse(p.example())
		if err != nil {
			t.Fatal(err)
		}
		if !p.matches(ref) || !p.matchesAnySpelling(ref) {
			t.Errorf("%q does not match its own example %q", text, ref)
		}
	}
}
