// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent"
)

// moment is longer than progressInterval.
const moment = 2 * time.Second

// lockedStore has for every blob an ingest by another pull, without a byte.
type lockedStore struct{ content.Store }

func (lockedStore) Status(context.Context, string) (content.Status, error) {
	return content.Status{}, nil
}

func TestWaitingForAStreamIsProgressAsLongAsAnyReceives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreams()
		var first, second atomic.Int32
		waiting := newMeter(func(nodeagent.Progress) { first.Add(1) })
		defer waiting.stop()
		behind := newMeter(func(nodeagent.Progress) { second.Add(1) })
		defer behind.stop()
		for range maxStreams {
			if err := s.acquire(t.Context(), "sha256:large", waiting); err != nil {
				t.Fatal(err)
			}
		}
		blob := ocispec.Descriptor{Digest: "sha256:small"}
		acquired := make(chan error)
		go func() { acquired <- s.acquire(t.Context(), blob.Digest, waiting) }()
		f := &fetcher{store: lockedStore{}, streams: s, meter: behind}
		// progressed reports which of the two had progress since the last call.
		progressed := func() (ofFirst, ofSecond bool) {
			time.Sleep(moment) //nolint:forbidigo // of the synctest bubble's clock
			if err := f.observeLocked(t.Context(), blob, nil); !errors.Is(err, errLocked) {
				t.Fatal(err)
			}
			time.Sleep(moment) //nolint:forbidigo // of the synctest bubble's clock
			return first.Swap(0) > 0, second.Swap(0) > 0
		}
		progressed()
		for _, step := range []struct {
			reason string
			bytes  int64
			want   bool
		}{
			{"no stream receives anything", 0, false},
			{"one does", 1, true},
			{"and again", 1, true},
			{"all stall", 0, false},
		} {
			s.addBytes(step.bytes)
			if waits, follows := progressed(); waits != step.want || follows != step.want {
				t.Errorf("%s: progress of the pull that waits for a stream: %v, of the one that waits for its blob: %v, want %v", step.reason, waits, follows, step.want)
			}
		}
		s.release()
		if err := <-acquired; err != nil {
			t.Fatal(err)
		}
		progressed()
		s.addBytes(1)
		if _, follows := progressed(); follows {
			t.Error("a blob that has a stream and gets nothing counts as progress")
		}
	})
}

func TestAPullThatWaitsForAStreamCanGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreams()
		m := newMeter(func(nodeagent.Progress) {})
		defer m.stop()
		for range maxStreams {
			if err := s.acquire(t.Context(), digest.Digest("sha256:large"), m); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), moment)
		defer cancel()
		if err := s.acquire(ctx, "sha256:small", m); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("acquire: %v", err)
		}
		s.release()
		if err := s.acquire(t.Context(), "sha256:small", m); err != nil {
			t.Errorf("the pull that gave up took a stream: %v", err)
		}
	})
}
