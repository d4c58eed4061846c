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
	// lockedInterval is the time between two looks at an ingest that another pull has locked.
	lockedInterval = 500 * time.Millisecond
	// maxUseless is how many times in a row all mirrors may refuse, or not answer at all, before the
	// pull gives up: the controller may have to let the node pull from the upstream.
	maxUseless = 5
	// maxCorrupt is how often a blob may arrive with the wrong digest before the pull gives up: the
	// node that the mirrors get it from may have no better copy.
	maxCorrupt = 3
)

// fetcher brings the blobs of one image from the mirrors into the content store.
type fetcher struct {
	store content.Store
	// sourceLabel labels each blob at its commit with its source, without which the mirror of this
	// node does not advertise it: see announce.
	sourceLabel content.Opt
	mirrors     *mirror.Client
	streams     *streams
	meter       *meter

	mu         sync.Mutex
	lastErrors map[digest.Digest]error // of the last try, for each blob that is not there yet
	skipped    map[digest.Digest]int64 // how much of each blob was received twice without Range
}

// fetchRoot fetches the manifest or index that the image's digest names. Its content says which of
// the two it is.
func (f *fetcher) fetchRoot(ctx context.Context, dgst digest.Digest) (desc ocispec.Descriptor, err error) {
	err = f.retry(ctx, dgst, func() (err error) {
		desc, err = f.tryRoot(ctx, dgst)
		return err
	})
	return desc, err
}

// tryRoot asks for it once.
func (f *fetcher) tryRoot(ctx context.Context, dgst digest.Digest) (ocispec.Descriptor, error) {
	body, err := f.mirrors.Get(ctx, mirror.Manifests, dgst, 0)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(body, maxInMemory+1))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := checkSize("manifest "+dgst.String(), int64(len(raw))); err != nil {
		return ocispec.Descriptor{}, err
	}
	if isSchema1(raw, dgst) {
		return ocispec.Descriptor{}, errSchema1
	}
	if dgst.Algorithm().FromBytes(raw) != dgst {
		body.Distrust()
		return ocispec.Descriptor{}, fmt.Errorf("manifest %s: mirror sent something else: %w", dgst, errdefs.ErrFailedPrecondition)
	}
	desc := ocispec.Descriptor{MediaType: mediaType(raw, body.MediaType), Digest: dgst, Size: int64(len(raw))}
	if !images.IsIndexType(desc.MediaType) && !images.IsManifestType(desc.MediaType) {
		return ocispec.Descriptor{}, fmt.Errorf("manifest %s is of the unknown type %q", dgst, desc.MediaType)
	}
	f.meter.addBytes(desc.Size)
	return desc, content.WriteBlob(ctx, f.store, remotes.MakeRefKey(ctx, desc), bytes.NewReader(raw), desc, f.sourceLabel)
}

// fetch brings one blob. It waits until a mirror has it.
func (f *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	kind := mirror.Blobs
	if images.IsIndexType(desc.MediaType) || images.IsManifestType(desc.MediaType) {
		kind = mirror.Manifests
		if err := checkSize("manifest "+desc.Digest.String(), desc.Size); err != nil {
			return err
		}
	}
	return f.retry(ctx, desc.Digest, func() error { return f.ingest(ctx, kind, desc) })
}

// ingest writes the blob under the ingest key that containerd's own pulls use. Of two pulls the
// second waits, and then finds the blob in the store. The key stays unlocked while the mirror has
// no blob, so that a pull by the kubelet, which may ask the upstream, goes ahead.
func (f *fetcher) ingest(ctx context.Context, kind mirror.Kind, desc ocispec.Descriptor) error {
	writer, err := f.store.Writer(ctx, content.WithRef(remotes.MakeRefKey(ctx, desc)), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if errdefs.IsUnavailable(err) {
		return f.observeLocked(ctx, desc, err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = writer.Close() }()
	reader := &blobReader{ctx: ctx, fetcher: f, kind: kind, desc: desc}
	defer reader.close()
	err = content.Copy(ctx, writer, reader, desc.Size, desc.Digest, f.sourceLabel)
	if errdefs.IsFailedPrecondition(err) {
		// The content is not what the digest says: the next try begins at the first byte.
		reader.distrust()
		f.meter.addBytes(-reader.received)
		_ = writer.Close()
		return errors.Join(err, f.store.Abort(ctx, remotes.MakeRefKey(ctx, desc)))
	}
	return err
}

// errLocked: another pull is writing the blob.
var errLocked = errors.New("blob is being written by another pull")

// observeLocked returns errLocked if another pull has locked the ingest, and the cause if the
// daemon does not answer: containerd says "unavailable" in both cases. The other pull's progress
// counts for this one, be it bytes of the blob or those of the streams that it waits for.
func (f *fetcher) observeLocked(ctx context.Context, desc ocispec.Descriptor, cause error) error {
	status, err := f.store.Status(ctx, remotes.MakeRefKey(ctx, desc))
	if errdefs.IsUnavailable(err) {
		return cause
	}
	if err == nil {
		f.meter.observeOther(desc.Digest, status.Offset+f.streams.progressAhead(desc.Digest))
	}
	return errLocked
}

// errCorrupt: the mirrors have sent content with the wrong digest maxCorrupt times.
var errCorrupt = errors.New("not what its digest says")

// retry calls try until it succeeds or ctx ends. It gives up at once after an error that is not the
// mirrors', or where all are silent; after maxCorrupt wrong contents; and after maxUseless tries
// without an answer that may become another, unless a mirror may be starting still.
func (f *fetcher) retry(ctx context.Context, dgst digest.Digest, try func() error) error {
	defer f.meter.beginTransfer()()
	useless, corrupt := 0, 0
	for {
		if err := f.mirrors.WaitReady(ctx, dgst); err != nil {
			return err
		}
		err := try()
		f.noteResult(dgst, err)
		var failed *mirror.Error
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, mirror.ErrNoMirror):
			return err
		case errors.As(err, &failed):
			if failed.Silent {
				return err // it has waited for long
			}
			if !failed.Useless || failed.Starting {
				useless = 0
			} else if useless++; useless >= maxUseless {
				return err
			}
		case errors.Is(err, errLocked):
			err = sleep(ctx, lockedInterval)
		case errdefs.IsFailedPrecondition(err) || errors.Is(err, io.ErrUnexpectedEOF):
			// The content is wrong or too short. The mirror may get a better copy next time.
			if errdefs.IsFailedPrecondition(err) {
				corrupt++
			}
			if corrupt >= maxCorrupt {
				return fmt.Errorf("%w: %w", errCorrupt, err)
			}
			err = sleep(ctx, f.mirrors.Throttle.AfterMiss)
		default:
			return err
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// noteResult remembers why a blob is not there yet, for the pull's error in case it never comes.
func (f *fetcher) noteResult(dgst digest.Digest, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lastErrors == nil {
		f.lastErrors = map[digest.Digest]error{}
	}
	if err == nil {
		delete(f.lastErrors, dgst)
		return
	}
	f.lastErrors[dgst] = err
}

// pendingError is the last error of a blob that is not there yet; nil if there is none. Of several
// blobs it is the one with the smallest digest, so that the message does not change.
func (f *fetcher) pendingError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var first digest.Digest
	for dgst := range f.lastErrors {
		if first == "" || dgst < first {
			first = dgst
		}
	}
	return f.lastErrors[first]
}

// blobReader reads a blob from the mirrors. It asks them at the first Read, from the byte on where
// the ingest stopped.
type blobReader struct {
	ctx     context.Context
	fetcher *fetcher
	kind    mirror.Kind
	desc    ocispec.Descriptor

	offset   int64
	received int64 // bytes that are new
	body     *mirror.Content
	release  func()
}

// Seek sets where to begin. content.Copy calls it to resume, or to begin again.
func (b *blobReader) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, fmt.Errorf("seek from %d: %w", whence, errdefs.ErrNotImplemented)
	}
	b.close()
	b.offset = offset
	return offset, nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.body == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	n, err := b.body.Read(p)
	b.offset += int64(n)
	b.received += int64(n)
	b.fetcher.meter.addBytes(int64(n))
	b.fetcher.streams.addBytes(int64(n))
	return n, err
}

// distrust has the next try begin with another mirror, if there is one.
func (b *blobReader) distrust() {
	if b.body != nil {
		b.body.Distrust()
	}
}

func (b *blobReader) open() error {
	if b.offset == b.desc.Size && b.offset > 0 {
		return io.EOF // ingested to the end, but not committed
	}
	body, err := b.fetcher.mirrors.Get(b.ctx, b.kind, b.desc.Digest, b.offset)
	if err != nil {
		return err
	}
	// A stream is taken after the mirror has answered: waiting for a mirror costs nothing, and
	// receiving costs a buffer.
	if err := b.fetcher.streams.acquire(b.ctx, b.desc.Digest, b.fetcher.meter); err != nil {
		_ = body.Close()
		return err
	}
	b.body = body
	b.release = b.fetcher.streams.release
	if b.offset > body.Offset {
		return b.skip(b.offset - body.Offset)
	}
	return nil
}

// skip reads over what has been received before, which a server without support for Range sends again.
// That is progress once for each offset: a server that breaks off there each time would otherwise keep
// the pull alive for ever.
func (b *blobReader) skip(bytes int64) error {
	again := b.fetcher.noteSkip(b.desc.Digest, bytes)
	var skipped int64
	_, err := io.CopyN(writerFunc(func(p []byte) {
		skipped += int64(len(p))
		b.fetcher.streams.addBytes(int64(len(p)))
		if !again {
			b.fetcher.meter.observeOther(b.desc.Digest, skipped)
		}
	}), b.body, bytes)
	return err
}

// noteSkip notes that so many bytes of a blob come again, and reports whether as many have before.
func (f *fetcher) noteSkip(dgst digest.Digest, bytes int64) (again bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bytes <= f.skipped[dgst] {
		return true
	}
	if f.skipped == nil {
		f.skipped = map[digest.Digest]int64{}
	}
	f.skipped[dgst] = bytes
	return false
}

// writerFunc looks at what is written.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

func (b *blobReader) close() {
	if b.body == nil {
		return
	}
	_ = b.body.Close()
	b.release()
	b.body = nil
}
