// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"sync"

	"github.com/containerd/containerd/v2/core/transfer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tracker reads the progress that the transfer service reports, about three times a
// second and a little late, into a meter. The events' names are containerd's
// (core/transfer/local/pull.go and progress.go).
type tracker struct {
	meter *meter

	mu    sync.Mutex
	root  *ocispec.Descriptor
	blobs map[string]*blob
}

type blob struct {
	size, received int64
	end            func()
}

func newTracker(m *meter) *tracker {
	return &tracker{meter: m, blobs: map[string]*blob{}}
}

func (t *tracker) target() (ocispec.Descriptor, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.root == nil {
		return ocispec.Descriptor{}, false
	}
	return *t.root, true
}

func (t *tracker) progress(p transfer.Progress) {
	if p.Event == "fetching image content" && p.Desc != nil {
		t.mu.Lock()
		t.root = p.Desc
		t.mu.Unlock()
		t.meter.resolved(p.Desc.Digest)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Name == "" || p.Desc == nil {
		return
	}
	b := t.blobs[p.Name]
	if b == nil {
		b = &blob{size: p.Desc.Size, end: t.meter.begin()}
		t.blobs[p.Name] = b
	}
	switch p.Event {
	case "downloading":
		t.received(b, p.Progress)
	case "already exists":
		b.received = b.size // by an earlier pull
		b.end()
	case "complete":
		t.received(b, b.size)
		b.end()
	case "extracting", "extracted":
		b.end()
	}
}

// received is called with the lock held. An ingest that was resumed begins in the
// middle; what came before counts all the same.
func (t *tracker) received(b *blob, bytes int64) {
	if bytes > b.received {
		t.meter.add(bytes - b.received)
		b.received = bytes
	}
}

// close ends what the transfer has left open.
func (t *tracker) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.blobs {
		b.end()
	}
}
