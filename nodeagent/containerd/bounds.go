// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent"
)

// maxInMemory is how large a manifest or a config may be, in bytes, since they are read into memory.
// Registries allow 4 MiB for manifests.
const maxInMemory = 8 << 20

// boundedStore is a content store that hands out nothing larger than maxInMemory: what is read here
// are manifests and configs, whole. Layers are the daemon's to read.
type boundedStore struct{ content.Store }

func (r *Runtime) store() content.Store { return boundedStore{r.client.ContentStore()} }

// ReaderAt implements content.Provider. The size is that of the blob: a manifest may say another.
func (s boundedStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	reader, err := s.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if err := checkSize(desc.Digest.String(), reader.Size()); err != nil {
		_ = reader.Close()
		return nil, err
	}
	return reader, nil
}

func checkSize(what string, bytes int64) error {
	if bytes > maxInMemory {
		return fmt.Errorf("%w: %s has %d bytes, and a manifest or config may have %d", nodeagent.ErrImageInvalid, what, bytes, int64(maxInMemory))
	}
	return nil
}

// wasmConfig is the config's type of a WebAssembly module, which a runtime class of its own runs.
const wasmConfig = "application/vnd.wasm.config.v0+json"

// checkRunnable returns ErrImageInvalid for what no container can run: an artifact of another kind, or
// an image with a config that is too large.
func checkRunnable(manifest ocispec.Manifest) error {
	config := manifest.Config
	if !images.IsConfigType(config.MediaType) && config.MediaType != docker.LegacyConfigMediaType && config.MediaType != wasmConfig {
		return fmt.Errorf("%w: its config is of the type %q, so that it is no container image", nodeagent.ErrImageInvalid, config.MediaType)
	}
	return checkSize("its config "+config.Digest.String(), config.Size)
}
