// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package imageref

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

const (
	someHex    = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	someDigest = digest.Digest("sha256:" + someHex)
)

func TestParseNormalizesAsCRIDoes(t *testing.T) {
	for _, tt := range []struct {
		reason, in, want string
	}{
		{"no registry and no namespace is docker.io/library", "nginx", "docker.io/library/nginx:latest"},
		{"no registry is docker.io", "org/app:v1", "docker.io/org/app:v1"},
		{"a tag stays", "ghcr.io/org/app:v1", "ghcr.io/org/app:v1"},
		{"the old name of docker.io is docker.io", "index.docker.io/library/nginx", "docker.io/library/nginx:latest"},
		{"a port makes it a registry", "registry:5000/app", "registry:5000/app:latest"},
		{"localhost is a registry without port", "localhost/app", "localhost/app:latest"},
		{"an upper-case first part is a registry", "Registry/app", "Registry/app:latest"},
		{"a digest stays", "nginx@" + someDigest.String(), "docker.io/library/nginx@" + someDigest.String()},
		{"beside a digest CRI drops the tag", "nginx:1.27@" + someDigest.String(), "docker.io/library/nginx@" + someDigest.String()},
		{"an IPv6 registry", "[::1]:5000/app:v1", "[::1]:5000/app:v1"},
		{"what is normalized stays as it is", "docker.io/library/nginx:latest", "docker.io/library/nginx:latest"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			got, err := Parse(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != tt.want {
				t.Errorf("Parse(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func TestParseRejects(t *testing.T) {
	for _, in := range []string{
		"", " ", "nginx ", "UPPER", "ghcr.io/Org/app", "https://ghcr.io/org/app", "app:", "app@sha256:short",
		"app@" + strings.ToUpper(someDigest.String()), someHex, "user@host/app", "a//b", "../app", "app:v1:v2", "ghcr.io/org/äpp",
	} {
		t.Run(in, func(t *testing.T) {
			if got, err := Parse(in); err == nil {
				t.Errorf("Parse(%q) = %q, want an error", in, got)
			}
		})
	}
}

func TestReferencesCompareByMeaning(t *testing.T) {
	short, _ := Parse("nginx")
	long, _ := Parse("docker.io/library/nginx:latest")
	other, _ := Parse("nginx:1.27")
	if short != long {
		t.Errorf("%v and %v differ", short, long)
	}
	if short == other {
		t.Errorf("%v and %v do not differ", short, other)
	}
}

func TestNamesServeAPodByTagAndByDigest(t *testing.T) {
	tagged, _ := Parse("ghcr.io/org/app:v1")
	if got, want := tagged.Names(someDigest), []string{"ghcr.io/org/app:v1", "ghcr.io/org/app@" + someDigest.String()}; !slices.Equal(got, want) {
		t.Errorf("Names = %q, want %q", got, want)
	}
	pinned, _ := Parse("ghcr.io/org/app@" + someDigest.String())
	if got, want := pinned.Names(someDigest), []string{"ghcr.io/org/app@" + someDigest.String()}; !slices.Equal(got, want) {
		t.Errorf("Names = %q, want %q: a digest has no tag", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"nginx", "a/b:c", "r:5000/a@" + someDigest.String(), "a:b@" + someDigest.String(), "[::1]:5/a", "A/b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(ref.String())
		if err != nil {
			t.Fatalf("Parse(%q) = %q, which does not parse: %v", s, ref, err)
		}
		if again != ref {
			t.Fatalf("normalizing %q twice gives %q, once %q", s, again, ref)
		}
		if (ref.Tag() == "") == (ref.Digest() == "") {
			t.Fatalf("Parse(%q) = %q has not exactly one of tag and digest", s, ref)
		}
		if ref.String() != ref.Names(someDigest)[0] {
			t.Fatalf("Names of %q does not begin with itself", ref)
		}
	})
}
