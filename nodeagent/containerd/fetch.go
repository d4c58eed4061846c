// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

const (
	// maxManifest bounds what is read into memory; registries allow 4 MiB.
	maxManifest = 8 << 20
	// lockedPause is how often an ingest that another holds is looked at.
	lockedPause = 500 * time.Millisecond
	// maxUnreachable is how many times in a row no mirror at all may answer before the
	// pull gives up: the node may have to get the image from elsewhere.
	maxUnreachable = 5
	// maxRejected is how often the mirrors may send something else than what the digest
	// names before the pull gives up: whoever holds it may hold nothing better.
	maxRejected = 3
)

// fetcher brings single blobs from the mirrors into the content store.
type fetcher struct {
	store content.Store
	// origin labels what is committed with its source. Spegel tells peers of a blob only if
	// the label is there within 650 ms of the commit, and looks for it no second time.
	origin  content.Opt
	mirrors *mirror.Client
	streams *streams
	meter   *meter

	mu     sync.Mutex
	missed map[digest.Digest]error // what each blob that is waited for got last
}

// root fetches the manifest or index that an image begins with. Its type is in it.
func (f *fetcher) root(ctx context.Context, dgst digest.Digest) (ocispec.Descriptor, error) {
	var desc ocispec.Descriptor
	err := f.retry(ctx, dgst, func() error {
		answer, err := f.mirrors.Get(ctx, mirror.Manifests, dgst, 0)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Close() }()
		raw, err := io.ReadAll(io.LimitReader(answer, maxManifest+1))
		if err != nil {
			return err
		}
		if len(raw) > maxManifest {
			return fmt.Errorf("manifest %s is larger than %d bytes", dgst, maxManifest)
		}
		if dgst.Algorithm().FromBytes(raw) != dgst {
			return fmt.Errorf("manifest %s: mirror sent something else: %w", dgst, errdefs.ErrFailedPrecondition)
		}
		desc = ocispec.Descriptor{MediaType: mediaType(raw, answer.MediaType), Digest: dgst, Size: int64(len(raw))}
		if !images.IsIndexType(desc.MediaType) && !images.IsManifestType(desc.MediaType) {
			return fmt.Errorf("manifest %s is of the unknown type %q", dgst, desc.MediaType)
		}
		f.meter.add(desc.Size)
		return content.WriteBlob(ctx, f.store, remotes.MakeRefKey(ctx, desc), bytes.NewReader(raw), desc, f.origin)
	})
	return desc, err
}

// fetch brings one blob; it waits for the mirrors to have it.
func (f *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	kind := mirror.Blobs
	if images.IsIndexType(desc.MediaType) || images.IsManifestType(desc.MediaType) {
		kind = mirror.Manifests
		if desc.Size > maxManifest {
			return fmt.Errorf("manifest %s is larger than %d bytes", desc.Digest, maxManifest)
		}
	}
	return f.retry(ctx, desc.Digest, func() error { return f.ingest(ctx, kind, desc) })
}

// ingest writes into the store under the key that containerd's own pulls use: who
// comes second waits, and finds the blob there. The key is not held while we wait for
// the mirror, so that a pull of the kubelet's, which can go upstream, goes ahead.
func (f *fetcher) ingest(ctx context.Context, kind mirror.Kind, desc ocispec.Descriptor) error {
	writer, err := f.store.Writer(ctx, content.WithRef(remotes.MakeRefKey(ctx, desc)), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if errdefs.IsUnavailable(err) {
		return f.locked(ctx, desc, err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = writer.Close() }()
	reader := &blobReader{ctx: ctx, fetcher: f, kind: kind, desc: desc}
	defer reader.close()
	err = content.Copy(ctx, writer, reader, desc.Size, desc.Digest, f.origin)
	if errdefs.IsFailedPrecondition(err) {
		// What was ingested is not what the digest says; begin anew.
		f.meter.add(-reader.received)
		_ = writer.Close()
		return errors.Join(err, f.store.Abort(ctx, remotes.MakeRefKey(ctx, desc)))
	}
	return err
}

// errLocked: another is writing the blob.
var errLocked = errors.New("blob is being written by another")

// locked tells an ingest that another holds from a daemon that is away: containerd
// says "unavailable" of both. The other's progress is ours, be it with the blob or
// towards a stream.
func (f *fetcher) locked(ctx context.Context, desc ocispec.Descriptor, cause error) error {
	status, err := f.store.Status(ctx, remotes.MakeRefKey(ctx, desc))
	if errdefs.IsUnavailable(err) {
		return cause
	}
	if err == nil {
		f.meter.watched(desc.Digest, status.Offset+f.streams.ahead(desc.Digest))
	}
	return errLocked
}

// errRejected: the mirrors have sent something else than the blob too often.
var errRejected = errors.New("not what its digest says")

// retry tries until it succeeds, ctx ends, or no mirror answers at all any more, or none
// with the right content; an error that no mirror is to blame for ends it too.
func (f *fetcher) retry(ctx context.Context, dgst digest.Digest, try func() error) error {
	defer f.meter.begin()()
	unreachable, rejected := 0, 0
	for {
		if err := f.mirrors.WaitReady(ctx, dgst); err != nil {
			return err
		}
		err := try()
		f.note(dgst, err)
		var failed *mirror.Error
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, mirror.ErrNoMirror):
			return err
		case errors.As(err, &failed):
			if !failed.Unreachable {
				unreachable = 0
			} else if unreachable++; unreachable >= maxUnreachable {
				return err
			}
		case errors.Is(err, errLocked):
			err = pause(ctx, lockedPause)
		case errdefs.IsFailedPrecondition(err) || errors.Is(err, io.ErrUnexpectedEOF):
			// Not the blob that the digest names. The mirror may have another next time.
			if errdefs.IsFailedPrecondition(err) {
				rejected++
			}
			if rejected >= maxRejected {
				return fmt.Errorf("%w: %w", errRejected, err)
			}
			err = pause(ctx, f.mirrors.Throttle.AfterMiss)
		default:
			return err
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// note remembers why a blob is not there yet, for the error if it never comes.
func (f *fetcher) note(dgst digest.Digest, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.missed == nil {
		f.missed = map[digest.Digest]error{}
	}
	if err == nil {
		delete(f.missed, dgst)
		return
	}
	f.missed[dgst] = err
}

// waiting is one of the errors that blobs are waiting on, or nil.
func (f *fetcher) waiting() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var first digest.Digest
	for dgst := range f.missed {
		if first == "" || dgst < first {
			first = dgst
		}
	}
	return f.missed[first]
}

// blobReader asks the mirrors when it is first read, from where the ingest left off.
type blobReader struct {
	ctx     context.Context
	fetcher *fetcher
	kind    mirror.Kind
	desc    ocispec.Descriptor

	offset   int64
	received int64 // over the network
	answer   *mirror.Content
	release  func()
}

// Seek sets where to begin; content.Copy calls it to resume, and to begin anew.
func (b *blobReader) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, fmt.Errorf("seek from %d: %w", whence, errdefs.ErrNotImplemented)
	}
	b.close()
	b.offset = offset
	return offset, nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.answer == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	n, err := b.answer.Read(p)
	b.offset += int64(n)
	b.meter(int64(n))
	return n, err
}

func (b *blobReader) meter(bytes int64) {
	b.received += bytes
	b.fetcher.meter.add(bytes)
	b.fetcher.streams.add(bytes)
}

func (b *blobReader) open() error {
	if b.offset == b.desc.Size && b.offset > 0 {
		return io.EOF // ingested to the end, but not committed
	}
	answer, err := b.fetcher.mirrors.Get(b.ctx, b.kind, b.desc.Digest, b.offset)
	if err != nil {
		return err
	}
	// Asking is free, also in vain; receiving takes a buffer.
	if err := b.fetcher.streams.acquire(b.ctx, b.desc.Digest, b.fetcher.meter); err != nil {
		_ = answer.Close()
		return err
	}
	b.answer = answer
	b.release = b.fetcher.streams.release
	// A server without Range begins at the beginning.
	skipped, err := io.CopyN(io.Discard, answer, b.offset-answer.Offset)
	b.meter(skipped)
	return err
}

func (b *blobReader) close() {
	if b.answer == nil {
		return
	}
	_ = b.answer.Close()
	b.release()
	b.answer = nil
}
