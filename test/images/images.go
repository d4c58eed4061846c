// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package images makes container images out of nothing, for tests: any number
// of layers of any size, the same on every machine and in every run.
//
// Content follows from names alone. A layer's bytes are a cipher stream keyed
// by its name, so they do not compress, and two layers of the same name and
// size are the same blob: that is how images share layers. Nothing of a layer
// is kept in memory; each reader makes the stream again, a GiB in about a
// second. Only its digests are computed once, and kept.
//
// Layers are real gzipped tars (stored, not deflated) that any snapshotter
// unpacks; manifests, indexes and configs have the OCI media types.
package images

import (
	"fmt"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Artifact is what a reference can name: a v1.Image or a v1.ImageIndex.
type Artifact = mutate.Appendable

// Sizes, in bytes.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
)

// Options say what an image is made of.
type Options struct {
	// Layers, lowest first. See Layer and Layers.
	Layers []v1.Layer
	// Platform is "os/architecture"; linux/amd64 if empty.
	Platform string
	// Seed goes into the config. It tells images apart that are otherwise
	// equal, such as two versions of one tag that differ in nothing else.
	Seed string
	// Entrypoint is what a container of the image runs.
	Entrypoint []string
}

// Image returns the image that the options describe.
func Image(opts Options) (v1.Image, error) {
	if opts.Platform == "" {
		opts.Platform = "linux/amd64"
	}
	platform, err := v1.ParsePlatform(opts.Platform)
	if err != nil {
		return nil, fmt.Errorf("parse platform %q: %w", opts.Platform, err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	base, err = mutate.ConfigFile(base, &v1.ConfigFile{
		OS:           platform.OS,
		Architecture: platform.Architecture,
		Variant:      platform.Variant,
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: opts.Entrypoint,
			Env:        []string{"PATH=/"},
			Labels:     map[string]string{"dev.sluice.test/seed": opts.Seed},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("set image config: %w", err)
	}
	img, err := mutate.AppendLayers(base, opts.Layers...)
	if err != nil {
		return nil, fmt.Errorf("append layers: %w", err)
	}
	return img, nil
}

// Index returns a multi-platform index of the images, each under the platform
// that its own config names.
func Index(imgs ...v1.Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, img := range imgs {
		config, err := img.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("read image config: %w", err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: config.Platform()},
		})
	}
	return index, nil
}

// Runnable returns a linux/amd64 image whose entrypoint is the static binary
// at binaryPath, with further layers below it for bulk. The file is read now.
func Runnable(binaryPath string, below ...v1.Layer) (v1.Image, error) {
	program, err := programLayer(binaryPath)
	if err != nil {
		return nil, err
	}
	return Image(Options{
		Layers:     append(below[:len(below):len(below)], program),
		Entrypoint: []string{"/" + path.Base(binaryPath)},
	})
}

// SplitTag splits "repository:tag" as Push and WriteArchive take it; the tag
// is "latest" when there is none.
func SplitTag(ref string) (repository, tag string) {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i], ref[i+1:]
	}
	return ref, "latest"
}
