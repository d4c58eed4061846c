// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteArchive writes an image or index as an OCI layout in a tar, as "ctr
// images import" reads it. Unlike docker's format it keeps the digest. The
// name is the full one of the image record, such as "docker.io/library/pause:1".
func WriteArchive(w io.Writer, name string, artifact Artifact) error {
	a := archive{tar: tar.NewWriter(w), written: map[v1.Hash]bool{}}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := a.artifact(artifact); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	root, err := partial.Descriptor(artifact)
	if err != nil {
		return err
	}
	root.Annotations = map[string]string{"io.containerd.image.name": name}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*root}})
	if err != nil {
		return err
	}
	if err := a.file("index.json", index); err != nil {
		return err
	}
	return a.tar.Close()
}

type archive struct {
	tar     *tar.Writer
	written map[v1.Hash]bool
}

func (a *archive) file(name string, content []byte) error {
	return a.stream(name, int64(len(content)), bytes.NewReader(content))
}

func (a *archive) stream(name string, size int64, content io.Reader) error {
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	_, err := io.CopyBuffer(a.tar, content, make([]byte, copyBuffer))
	return err
}

func (a *archive) artifact(artifact Artifact) error {
	return Walk(artifact, func(b Blob) error {
		if a.written[b.Digest] {
			return nil
		}
		a.written[b.Digest] = true
		content, err := b.Open()
		if err != nil {
			return err
		}
		defer content.Close()
		return a.stream("blobs/"+b.Digest.Algorithm+"/"+b.Digest.Hex, b.Size, content)
	})
}
