// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/test/distribution"
	"github.com/sluice-dev/sluice/test/images"
)

// repository is the content of one name. Content is not shared between
// repositories, as in a registry that checks access.
type repository struct {
	tags    map[string]v1.Hash
	content map[v1.Hash]images.Blob
}

// Push makes an image or an index available under "repository:tag", without
// the registry's host. A tag that exists points at the new content from then
// on; the old content stays, under its digest.
func (s *Server) Push(ref string, artifact images.Artifact) error {
	name, tag := images.SplitTag(ref)
	digest, err := artifact.Digest()
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	var blobs []images.Blob
	err = images.Walk(artifact, func(b images.Blob) error {
		blobs = append(blobs, b)
		return nil
	})
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	repo, found := s.repositories[name]
	if !found {
		repo = repository{tags: map[string]v1.Hash{}, content: map[v1.Hash]images.Blob{}}
		s.repositories[name] = repo
	}
	for _, b := range blobs {
		repo.content[b.Digest] = b
	}
	repo.tags[tag] = digest
	return nil
}

// find returns the content that the target names.
func (s *Server) find(target distribution.Target) (images.Blob, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.repositories[target.Repository] // reading the zero value finds nothing
	digest, tagged := repo.tags[target.Reference]
	if target.Kind != distribution.Tag {
		var err error
		digest, err = v1.NewHash(target.Reference)
		tagged = err == nil
	}
	blob, found := repo.content[digest]
	return blob, tagged && found && blob.Manifest == (target.Kind != distribution.Blob)
}

// seeker lets http.ServeContent read a range of a stream: it opens at the first
// read, and skips to where it was told to start.
type seeker struct {
	blob   images.Blob
	offset int64
	stream io.ReadCloser
}

// Seek implements io.Seeker, up to the first Read.
func (s *seeker) Seek(offset int64, whence int) (int64, error) {
	switch {
	case s.stream != nil:
		return 0, errors.New("stream was already read")
	case whence == io.SeekEnd:
		offset += s.blob.Size
	case whence == io.SeekCurrent:
		offset += s.offset
	}
	s.offset = offset
	return offset, nil
}

// Read implements io.Reader.
func (s *seeker) Read(p []byte) (int, error) {
	if s.stream == nil {
		stream, err := s.blob.Open()
		if err != nil {
			return 0, err
		}
		s.stream = stream
		if _, err := io.CopyN(io.Discard, stream, s.offset); err != nil {
			return 0, err
		}
	}
	return s.stream.Read(p)
}

// Close implements io.Closer.
func (s *seeker) Close() error {
	if s.stream == nil {
		return nil
	}
	return s.stream.Close()
}
