// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

const (
	// registry is the name of the registry of all images.
	registry = "registry.example.com"
	// failing are the images that failEvery-th nodes do not get.
	failing   = "failing"
	failEvery = 20
	// held are the images that nodes have from the start.
	held = "held"

	imageSize = int64(200 << 20)
	// A pull takes between these times.
	shortestPull, longestPull = 500 * time.Millisecond, 2 * time.Second
)

var errFails = errors.New("this node gets no such image")

// nodeRuntime is a node's container runtime that has nothing but a memory: a pull is some time that
// passes. The tag of an image means the digest of its name.
type nodeRuntime struct {
	fails bool

	mu      sync.Mutex
	random  *rand.Rand
	present map[string]digest.Digest // by the name of the image
}

var _ nodeagent.Runtime = (*nodeRuntime)(nil)

func newNodeRuntime(node int) *nodeRuntime {
	return &nodeRuntime{
		fails:   node%failEvery == 0,
		random:  rand.New(rand.NewPCG(uint64(node), 1)),
		present: map[string]digest.Digest{},
	}
}

// isOf reports whether an image is of a kind.
func isOf(ref imageref.Reference, kind string) bool { return strings.HasPrefix(ref.Path(), kind+"/") }

// Check implements nodeagent.Runtime.
func (r *nodeRuntime) Check(_ context.Context, ref imageref.Reference, want digest.Digest) (nodeagent.Presence, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if isOf(ref, held) || r.present[ref.String()] == want {
		return nodeagent.Presence{Present: true, SizeBytes: imageSize}, nil
	}
	return nodeagent.Presence{}, nil
}

// Pull implements nodeagent.Runtime.
func (r *nodeRuntime) Pull(ctx context.Context, req nodeagent.PullRequest, onProgress func(nodeagent.Progress)) (nodeagent.Result, error) {
	r.mu.Lock()
	takes := shortestPull + time.Duration(r.random.Int64N(int64(longestPull-shortestPull)))
	r.mu.Unlock()
	progress := nodeagent.Progress{Digest: req.Digest, SizeBytes: imageSize}
	if progress.Digest == "" {
		progress.Digest = digest.FromString(req.Ref.String())
	}
	onProgress(progress)
	const parts = 4
	for range parts {
		select {
		case <-ctx.Done():
			return nodeagent.Result{}, context.Cause(ctx)
		case <-time.After(takes / parts):
		}
		if r.fails && isOf(req.Ref, failing) {
			return nodeagent.Result{}, errFails
		}
		progress.PulledBytes += imageSize / parts
		onProgress(progress)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.present[req.Ref.String()] = progress.Digest
	return nodeagent.Result{Digest: progress.Digest, SizeBytes: imageSize, PulledBytes: imageSize, Source: source(req.Policy)}, nil
}

// Retain implements nodeagent.Runtime.
func (r *nodeRuntime) Retain(context.Context, []nodeagent.Retained) error { return nil }

// Watch implements nodeagent.Runtime. Nothing ever changes by itself.
func (r *nodeRuntime) Watch(ctx context.Context, connected func(), _ func(nodeagent.Change), found func([]nodeagent.Finding)) error {
	connected()
	found(nil)
	<-ctx.Done()
	return ctx.Err()
}
