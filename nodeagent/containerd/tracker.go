// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/transfer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tracker turns the progress events of the transfer service, which come about three times a second
// and a little late, into bytes of a meter. The names of the events are containerd's
// (core/transfer/local/pull.go and progress.go).
type tracker struct {
	meter *meter
	// resumedFrom is the offset of each ingest, by its key, that an earlier try has left
	// unfinished.
	resumedFrom map[string]int64

	mu    sync.Mutex
	root  *ocispec.Descriptor
	blobs map[string]*trackedBlob
}

// resolvedEvent comes once the daemon knows what the reference means.
const resolvedEvent = "fetching image content"

type trackedBlob struct {
	size, received int64
	end            func()
}

func newTracker(m *meter, unfinished []content.Status) *tracker {
	t := &tracker{meter: m, resumedFrom: map[string]int64{}, blobs: map[string]*trackedBlob{}}
	for _, ingest := range unfinished {
		t.resumedFrom[ingest.Ref] = ingest.Offset
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

func (t *tracker) onEvent(p transfer.Progress) {
	if p.Event == resolvedEvent && p.Desc != nil {
		t.mu.Lock()
		t.root = p.Desc
		t.mu.Unlock()
		t.meter.setDigest(p.Desc.Digest)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Name == "" || p.Desc == nil {
		return
	}
	b := t.blobs[p.Name]
	if b == nil {
		b = &trackedBlob{size: p.Desc.Size, received: t.resumedFrom[p.Name], end: t.meter.beginTransfer()}
		t.blobs[p.Name] = b
	}
	switch p.Event {
	case "downloading":
		t.setReceived(b, p.Progress)
	case "already exists":
		b.received = b.size // by an earlier pull
		b.end()
	case "complete":
		t.setReceived(b, b.size)
		b.end()
	case "extracting", "extracted":
		b.end()
	}
}

// setReceived counts the bytes that are new. The caller holds the lock.
func (t *tracker) setReceived(b *trackedBlob, bytes int64) {
	if bytes > b.received {
		t.meter.addBytes(bytes - b.received)
		b.received = bytes
	}
}

// close ends the blobs that the transfer has left open.
func (t *tracker) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.blobs {
		b.end()
	}
}
