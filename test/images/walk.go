// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Blob is one piece of content that an image consists of.
type Blob struct {
	v1.Descriptor
	// Manifest says that the blob is an index or a manifest, which a registry
	// serves under another path than configs and layers.
	Manifest bool
	// Open returns a new reader of the content. The caller closes it.
	Open func() (io.ReadCloser, error)
}

// Walk calls visit for each piece of content below the artifact: what is
// referred to before what refers to it, and the artifact itself last. A blob
// that is referred to twice is visited twice.
func Walk(artifact Artifact, visit func(Blob) error) error {
	switch a := artifact.(type) {
	case v1.ImageIndex:
		return walkIndex(a, visit)
	case v1.Image:
		return walkImage(a, visit)
	default:
		return fmt.Errorf("artifact is neither an image nor an index: %T", artifact)
	}
}

func walkIndex(index v1.ImageIndex, visit func(Blob) error) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, child := range manifest.Manifests {
		if child.MediaType.IsIndex() {
			inner, err := index.ImageIndex(child.Digest)
			if err == nil {
				err = walkIndex(inner, visit)
			}
			if err != nil {
				return fmt.Errorf("index %s of index: %w", child.Digest, err)
			}
			continue
		}
		img, err := index.Image(child.Digest)
		if err != nil {
			return fmt.Errorf("open image %s of index: %w", child.Digest, err)
		}
		if err := walkImage(img, visit); err != nil {
			return err
		}
	}
	raw, err := index.RawManifest()
	if err != nil {
		return err
	}
	return visitBytes(manifest.MediaType, raw, true, visit)
}

func walkImage(img v1.Image, visit func(Blob) error) error {
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for i, l := range layers {
		if err := visit(Blob{Descriptor: manifest.Layers[i], Open: l.Compressed}); err != nil {
			return err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	if err := visitBytes(manifest.Config.MediaType, config, false, visit); err != nil {
		return err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return err
	}
	return visitBytes(manifest.MediaType, raw, true, visit)
}

func visitBytes(mediaType types.MediaType, content []byte, manifest bool, visit func(Blob) error) error {
	digest, size, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return err
	}
	return visit(Blob{
		Descriptor: v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size},
		Manifest:   manifest,
		Open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(content)), nil
		},
	})
}
