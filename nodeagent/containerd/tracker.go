// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/transfer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tracker reads the progress that the transfer service reports, about three times a
// second and a little late, into a meter. The events' names are containerd's
// (core/transfer/local/pull.go and progress.go).
type tracker struct {
	meter *meter
	// began are the bytes of unfinished ingests by their key, as an earlier try left them.
	began map[string]int64

	mu    sync.Mutex
	root  *ocispec.Descriptor
	blobs map[string]*blob
}

type blob struct {
	size, received int64
	end            func()
}

func newTracker(m *meter, unfinished []content.Status) *tracker {
	t := &tracker{meter: m, began: map[string]int64{}, blobs: map[string]*blob{}}
	for _, ingest := range unfinished {
		t.began[ingest.Ref] = ingest.Offset
	}
	return t
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
		b = &blob{size: p.Desc.Size, received: t.began[p.Name], end: t.meter.begin()}
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

// received is called with the lock held.
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
