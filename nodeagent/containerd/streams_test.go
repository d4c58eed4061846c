// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
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

func TestBytesThatComeAgainAreProgressOnce(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "0123456789") // without support for Range
	}))
	defer server.Close()
	var progressed int
	m := &meter{onProgress: func(nodeagent.Progress) { progressed++ }}
	f := &fetcher{streams: newStreams(), meter: m, mirrors: &mirror.Client{
		Hosts:    []docker.RegistryHost{{Client: server.Client(), Scheme: "http", Host: strings.TrimPrefix(server.URL, "http://")}},
		Throttle: &mirror.Throttle{}, AnswerTimeout: time.Minute, SilenceTimeout: time.Minute,
	}}
	blob := ocispec.Descriptor{Digest: digest.FromString("0123456789"), Size: 10}
	for _, step := range []struct {
		reason string
		offset int64
		want   int
	}{
		{"it begins in the middle", 4, 1},
		{"it has got no further", 4, 0},
		{"it is further", 6, 1},
		{"it was there before", 5, 0},
	} {
		progressed = 0
		reader := &blobReader{ctx: t.Context(), fetcher: f, kind: mirror.Blobs, desc: blob, offset: step.offset}
		if err := reader.open(); err != nil {
			t.Fatal(err)
		}
		m.notify()
		if progressed != step.want || m.pulledBytes() != 0 {
			t.Errorf("%s: progress %d times, want %d; %d bytes", step.reason, progressed, step.want, m.pulledBytes())
		}
		if rest, err := io.ReadAll(reader.body); string(rest) != "0123456789"[step.offset:] || err != nil {
			t.Errorf("%s: then %q, %v", step.reason, rest, err)
		}
		reader.close()
	}
}
