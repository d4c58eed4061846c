// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"testing"
)

// What the kubelet's keyring does in these cases was read from its tests and its code
// (k8s.io/kubernetes/pkg/credentialprovider, 1.36). The IPv6 address without a port is ours.
func TestAnEntryCoversWhatItCoversForTheKubelet(t *testing.T) {
	for _, tt := range []struct {
		reason, entry, domain, repository string
		want                              bool
	}{
		{"a host is its repositories", "ghcr.io", "ghcr.io", "org/app", true},
		{"a scheme says nothing", "https://ghcr.io", "ghcr.io", "org/app", true},
		{"nor does one without TLS", "http://ghcr.io", "ghcr.io", "org/app", true},
		{"another host is another host", "ghcr.io", "quay.io", "ghcr.io/app", false},
		{"a host is no suffix", "ghcr.io", "my.ghcr.io", "app", false},
		{"a host is no prefix", "ghcr.io", "ghcr.io.evil.com", "app", false},
		{"a dot is a dot", "ghcr.io", "ghcrxio", "app", false},
		{"a slash at the end says nothing", "ghcr.io/", "ghcr.io", "org/app", true},
		{"the API's first version is the host", "https://quay.io/v1/", "quay.io", "foo/bar", true},
		{"and so is the second", "quay.io/v2/", "quay.io", "foo", true},
		{"a path may follow the version", "quay.io/v2/org", "quay.io", "org/app", true},
		{"and is then asked for", "quay.io/v2/org", "quay.io", "other/app", false},
		{"a version without its slash is a path", "quay.io/v1", "quay.io", "foo", false},

		{"a path is itself", "bar.example.com/pong", "bar.example.com", "pong", true},
		{"and what lies under it", "bar.example.com/pong", "bar.example.com", "pong/pang", true},
		{"and what begins with it", "bar.example.com/pong", "bar.example.com", "pongz", true},
		{"another path is not", "bar.example.com/pong", "bar.example.com", "ping", false},
		{"nor is what lies over it", "bar.example.com/pong/pang", "bar.example.com", "pong", false},
		{"nor the same path elsewhere", "bar.example.com/pong", "example.com", "pong", false},
		{"a star in a path is no wildcard", "bar.example.com/*", "bar.example.com", "pong", false},
		{"a colon in a path is no port", "https://*.docker.io/path:1111", "prefix.docker.io", "path:1111/foo", true},
		{"and has to be there", "https://prefix.*.io/path:1111", "prefix.docker.io", "path/subpath:1111/foo", false},

		{"the same port", "registry:5000", "registry:5000", "app", true},
		{"another port", "registry:5000", "registry:5001", "app", false},
		{"a port missing in the entry", "registry.example.com", "registry.example.com:5000", "app", false},
		{"a port missing in the image", "registry.example.com:443", "registry.example.com", "app", false},
		{"a port and a path", "prefix.docker.io:1111/foo", "prefix.docker.io:1111", "foo/bar", true},

		{"a star for the first label", "*.kubernetes.io", "prefix.kubernetes.io", "app", true},
		{"for one between", "prefix.*.io", "prefix.kubernetes.io", "app", true},
		{"for the last", "prefix.kubernetes.*", "prefix.kubernetes.io", "app", true},
		{"for a part of a label", "*-good.kubernetes.io", "prefix-good.kubernetes.io", "app", true},
		{"for nothing", "*kubernetes.io", "kubernetes.io", "app", true},
		{"with a scheme", "https://*.docker.io", "prefix.docker.io", "foo/bar", true},
		{"with a version", "https://*.docker.io/v2/", "prefix.docker.io", "foo/bar", true},
		{"with a path", "*.kubernetes.io/blah", "prefix.kubernetes.io", "blah", true},
		{"with a path under it", "https://prefix.*.io/path", "prefix.docker.io", "path/subpath/foo", true},
		{"with a port", "*.docker.io:8888", "prefix.docker.io:8888", "path/foo", true},
		{"with a port and a path", "*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111", "blah", true},
		{"with another port", "*.kubernetes.io:1234/blah", "prefix.kubernetes.io:1111", "blah", false},
		{"with the port missing", "prefix.*.io/foo", "prefix.kubernetes.io:1111", "foo/bar", false},
		{"several", "*.*.*.kubernetes.io", "a.b.c.kubernetes.io", "app", true},
		{"a star is not no label", "*.kubernetes.io", "kubernetes.io", "app", false},
		{"nor two labels", "*.kubernetes.io", "a.b.kubernetes.io", "app", false},
		{"each star is a label", "*.*.kubernetes.io", "prefix.kubernetes.io", "app", false},
		{"a star does not reach over a dot", "*kubernetes.io", "a.kubernetes.io", "app", false},
		{"the rest has to fit", "k*.io", "quay.io", "app", false},
		{"to the end", "https://prefix.docker.c*", "prefix.docker.io", "app", false},
		{"from the beginning", "suffix.*.io", "prefix.docker.io", "app", false},
		{"in another domain", "https://*.docker.com", "prefix.docker.io", "app", false},

		{"an IPv6 address", "[::1]:5000", "[::1]:5000", "app", true},
		{"without a port", "[fd00::1]", "[fd00::1]", "app", true},
		{"what a user and password stand before", "https://me:secret@ghcr.io", "ghcr.io", "app", true},
	} {
		t.Run(tt.reason+"/"+tt.entry, func(t *testing.T) {
			l, ok := parseLocation(tt.entry)
			if !ok {
				t.Fatalf("%q is not taken for a location", tt.entry)
			}
			if got := l.covers(tt.domain, tt.repository); got != tt.want {
				t.Errorf("%q covers %s/%s: %t, want %t", tt.entry, tt.domain, tt.repository, got, tt.want)
			}
		})
	}
}

func TestAMatchImageCoversWhatItCoversForTheKubelet(t *testing.T) {
	for _, tt := range []struct {
		reason, pattern, image string
		want                   bool
	}{
		{"a host is its repositories", "ghcr.io", "ghcr.io/org/app", true},
		{"a star is a label", "*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/app", true},
		{"a port and a path", "registry.io:8080/path", "registry.io:8080/path/app", true},
		{"a slash at the end says nothing", "ghcr.io/", "ghcr.io/org/app", true},
		{"a scheme is not taken off", "https://ghcr.io", "ghcr.io/org/app", false},
		{"an API version is a path", "quay.io/v2/org", "quay.io/org/app", false},
		{"like any other", "quay.io/v2/org", "quay.io/v2/org/app", true},
		{"Docker Hub has one name", "index.docker.io", "nginx", false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			l, err := ParseMatchImage(tt.pattern)
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Covers(parse(t, tt.image)); got != tt.want {
				t.Errorf("%q covers %s: %t, want %t", tt.pattern, tt.image, got, tt.want)
			}
		})
	}
	if l, err := ParseMatchImage("a b"); err == nil {
		t.Errorf("%q is taken for %q", "a b", l.key())
	}
}
