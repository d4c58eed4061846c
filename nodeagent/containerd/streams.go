// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

// maxStreams bounds the blobs that are received at a time from mirrors, and with them
// the memory: each has a buffer of 1 MiB.
const maxStreams = 8

// streams are shared by all pulls of the node.
type streams struct {
	free *semaphore.Weighted

	mu       sync.Mutex
	received int64                 // bytes, by all of them
	queue    map[digest.Digest]int // how many wait for one, by blob
}

func newStreams() *streams {
	return &streams{free: semaphore.NewWeighted(maxStreams), queue: map[digest.Digest]int{}}
}

// acquire waits for a stream. As long as those that are taken receive anything, that is
// progress of the one that waits: no mirror keeps it waiting.
func (s *streams) acquire(ctx context.Context, d digest.Digest, m *meter) error {
	if s.free.TryAcquire(1) {
		return nil
	}
	defer s.enqueue(d)()
	acquired := make(chan error, 1)
	go func() { acquired <- s.free.Acquire(ctx, 1) }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case err := <-acquired:
			return err
		case <-ticker.C:
			m.watched(d, s.ahead(d))
		}
	}
}

func (s *streams) release() { s.free.Release(1) }

func (s *streams) enqueue(d digest.Digest) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue[d]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.queue[d]--; s.queue[d] == 0 {
			delete(s.queue, d)
		}
	}
}

// ahead is what the streams have received, where the blob waits for one of them.
func (s *streams) ahead(d digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue[d] == 0 {
		return 0
	}
	return s.received
}

// add counts what one of them received.
func (s *streams) add(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received += bytes
}
