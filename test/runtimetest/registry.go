// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
)

// Registry is a registry, or a mirror, for Fake: in memory, and without HTTP.
type Registry struct {
	mu       sync.Mutex
	tags     map[string]digest.Digest // by repository:tag
	contents map[digest.Digest]content
	withheld map[digest.Digest]bool
	closed   map[string]bool // repositories that ask for credentials
	down     bool
	fetched  map[digest.Digest]int
	resolved int
}

// content is one manifest, index, config or layer.
type content struct {
	descriptor v1.Descriptor
	// children of a manifest or an index.
	children []v1.Descriptor
	index    bool
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{
		tags: map[string]digest.Digest{}, contents: map[digest.Digest]content{}, withheld: map[digest.Digest]bool{},
		closed: map[string]bool{}, fetched: map[digest.Digest]int{},
	}
}

// Push implements ContentSource.
func (r *Registry) Push(ref string, artifact images.Artifact) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var root digest.Digest
	err := images.Walk(artifact, func(b images.Blob) error {
		c := content{descriptor: b.Descriptor}
		root = digest.Digest(b.Digest.String())
		if b.Manifest {
			if err := c.read(b); err != nil {
				return err
			}
		}
		r.contents[root] = c
		return nil
	})
	repository, tag := images.SplitTag(ref)
	r.tags[repository+":"+tag] = root
	return err
}

func (c *content) read(b images.Blob) error {
	reader, err := b.Open()
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }()
	raw, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	var manifest struct {
		Manifests, Layers []v1.Descriptor
		Config            *v1.Descriptor
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return err
	}
	c.index = manifest.Config == nil
	c.children = slices.Concat(manifest.Manifests, manifest.Layers)
	if !c.index {
		c.children = append(c.children, *manifest.Config)
	}
	return nil
}

// Withhold implements ContentSource.
func (r *Registry) Withhold(d digest.Digest) (serve func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withheld[d] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.withheld, d)
	}
}

// SetDown implements ContentSource.
func (r *Registry) SetDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// Protect implements ContentSource.
func (r *Registry) Protect(repository string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed[repository] = true
}

// Fetched implements ContentSource.
func (r *Registry) Fetched(d digest.Digest) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetched[d]
}

// Resolved implements ContentSource.
func (r *Registry) Resolved() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resolved
}

var errMissing = errors.New("404")

func (r *Registry) resolve(repository, tag string, credentials []nodeagent.Credential) (digest.Digest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return "", fmt.Errorf("%w: connection refused", nodeagent.ErrRegistryUnavailable)
	}
	r.resolved++
	if r.closed[repository] {
		if err := login(credentials); err != nil {
			return "", err
		}
	}
	d, ok := r.tags[repository+":"+tag]
	if !ok {
		return "", fmt.Errorf("%w: 404", nodeagent.ErrImageNotFound)
	}
	return d, nil
}

func (r *Registry) fetch(d digest.Digest) (content, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return content{}, fmt.Errorf("%w: connection refused", nodeagent.ErrRegistryUnavailable)
	}
	c, ok := r.contents[d]
	if !ok || r.withheld[d] {
		return content{}, errMissing
	}
	r.fetched[d]++
	return c, nil
}

// User and Password open protected repositories. OverLimit is a user with the same password who has
// sent too many requests.
const User, OverLimit, Password = "robot", "glutton", "hunter2"

func login(credentials []nodeagent.Credential) error {
	refusal := fmt.Errorf("%w: 401", nodeagent.ErrUnauthorized)
	for _, c := range credentials {
		switch {
		case c.Password != Password:
		case c.Username == User:
			return nil
		case c.Username == OverLimit:
			refusal = fmt.Errorf("%w: 429", nodeagent.ErrRegistryUnavailable)
		}
	}
	return refusal
}
