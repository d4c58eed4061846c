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

// maxStreams is how many blobs the node receives from mirrors at a time. It bounds the memory,
// since each has a buffer of 1 MiB.
const maxStreams = 8

// streams are the places for blobs that are being received. All pulls of the node share them.
type streams struct {
	semaphore *semaphore.Weighted

	mu       sync.Mutex
	received int64                 // bytes, by all of them
	waiting  map[digest.Digest]int // how many wait for one, by blob
}

func newStreams() *streams {
	return &streams{semaphore: semaphore.NewWeighted(maxStreams), waiting: map[digest.Digest]int{}}
}

// acquire waits for a stream. Bytes that arrive on the other streams count as progress of the pull
// that waits, because it is not a mirror that keeps it waiting.
func (s *streams) acquire(ctx context.Context, d digest.Digest, m *meter) error {
	if s.semaphore.TryAcquire(1) {
		return nil
	}
	defer s.enqueue(d)()
	acquired := make(chan error, 1)
	go func() { acquired <- s.semaphore.Acquire(ctx, 1) }()
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case err := <-acquired:
			return err
		case <-ticker.C:
			m.observeOther(d, s.progressAhead(d))
		}
	}
}

func (s *streams) release() { s.semaphore.Release(1) }

func (s *streams) enqueue(d digest.Digest) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[d]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.waiting[d]--; s.waiting[d] == 0 {
			delete(s.waiting, d)
		}
	}
}

// progressAhead is the number of bytes on all streams if the blob waits for a stream, and otherwise
// 0.
func (s *streams) progressAhead(d digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[d] == 0 {
		return 0
	}
	return s.received
}

// addBytes counts bytes that a stream has received.
func (s *streams) addBytes(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received += bytes
}
