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

// moment is longer than it takes to tell of progress.
const moment = 2 * time.Second

// lockedStore has an ingest of every blob under way that got nothing yet.
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
		// told is what was reported by each since the last call.
		told := func() (byFirst, bySecond bool) {
			time.Sleep(moment) //nolint:forbidigo // of the synctest bubble's clock
			if err := f.locked(t.Context(), blob, nil); !errors.Is(err, errLocked) {
				t.Fatal(err)
			}
			time.Sleep(moment) //nolint:forbidigo // of the synctest bubble's clock
			return first.Swap(0) > 0, second.Swap(0) > 0
		}
		told()
		for _, step := range []struct {
			reason string
			bytes  int64
			want   bool
		}{
			{"no stream receives anything", 0, false},
			{"one does", 1, true},
			{"and again", 1, true},
			{"it stalls", 0, false},
		} {
			s.add(step.bytes)
			if waits, follows := told(); waits != step.want || follows != step.want {
				t.Errorf("%s: who waits for a stream told of progress: %v, who waits for its blob: %v, want %v", step.reason, waits, follows, step.want)
			}
		}
		s.release()
		if err := <-acquired; err != nil {
			t.Fatal(err)
		}
		told()
		s.add(1)
		if _, follows := told(); follows {
			t.Error("a blob that has a stream and gets nothing counts as progress")
		}
	})
}

func TestWhoWaitsForAStreamCanGiveUp(t *testing.T) {
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
			t.Errorf("what was given up took a stream: %v", err)
		}
	})
}
