// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package imageref parses, normalizes and compares image references as the kubelet
// and containerd's CRI plugin do, so that what Sluice prefetches under a name is what
// a Pod finds under it.
//
// A reference without a registry is on docker.io, one without a registry and a
// namespace is in docker.io/library, and one without tag and digest means the tag
// "latest". A reference with both a tag and a digest means the digest: CRI drops the
// tag (github.com/distribution/reference.ParseDockerRef), and so does Parse.
package imageref

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	// CRI accepts sha256 and sha512 digests; go-digest knows only those that are linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// Reference is a normalized image reference: a repository with either a tag or a digest. Parse
// makes one; the zero value is none. References are comparable with ==.
type Reference struct {
	domain string
	path   string
	tag    string
	digest digest.Digest
}

// Parse normalizes s. The error says what is wrong with s, and quotes it.
func Parse(s string) (Reference, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, fmt.Errorf("parse image reference %q: %w", s, err)
	}
	ref := Reference{domain: reference.Domain(named), path: reference.Path(named)}
	switch named := named.(type) {
	case reference.Canonical:
		ref.digest = named.Digest()
	case reference.Tagged:
		ref.tag = named.Tag()
	}
	return ref, nil
}

// Domain is the registry's host with the port if there is one: "docker.io",
// "registry:5000".
func (r Reference) Domain() string { return r.domain }

// Path is the repository within the registry: "library/nginx".
func (r Reference) Path() string { return r.path }

// Repository is Domain and Path: "docker.io/library/nginx".
func (r Reference) Repository() string { return r.domain + "/" + r.path }

// Tag is empty where the reference names a digest.
func (r Reference) Tag() string { return r.tag }

// Digest is empty where the reference names a tag.
func (r Reference) Digest() digest.Digest { return r.digest }

// String is the name under which CRI knows the image:
// "docker.io/library/nginx:latest" or "docker.io/library/nginx@sha256:…".
func (r Reference) String() string {
	if r.digest != "" {
		return r.Repository() + "@" + r.digest.String()
	}
	return r.Repository() + ":" + r.tag
}

// WithDigest is the same repository at digest d.
func (r Reference) WithDigest(d digest.Digest) Reference {
	return Reference{domain: r.domain, path: r.path, digest: d}
}

// Names returns the names that an image of digest d needs: String, and the name by digest. A Pod
// then finds the image under either. CRI does not derive one from the other.
func (r Reference) Names(d digest.Digest) []string {
	if r.digest != "" {
		return []string{r.String()}
	}
	return []string{r.String(), r.WithDigest(d).String()}
}
