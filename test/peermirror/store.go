// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// ErrNotFound means that the node does not have what was asked for.
var ErrNotFound = errors.New("content not found")

// Store is what the node itself has.
type Store interface {
	// Resolve returns the digest that the image record of this full name, such
	// as "docker.io/library/app:1.0", points at; or ErrNotFound.
	Resolve(ctx context.Context, name string) (digest.Digest, error)
	// Open returns committed content, or ErrNotFound. The caller closes it.
	Open(ctx context.Context, dgst digest.Digest) (Content, error)
}

// Content is one open blob.
type Content struct {
	io.ReadSeekCloser
	Digest digest.Digest
	// Advertised is since when peers are told that the node has it; zero if they
	// are not.
	Advertised time.Time
}

// advertised reports whether peers know of the content.
func (c Content) advertised() bool {
	return !c.Advertised.IsZero() && time.Since(c.Advertised) >= announceDelay
}
