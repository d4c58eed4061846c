// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// Check implements nodeagent.Runtime.
func (r *Runtime) Check(ctx context.Context, ref imageref.Reference, want digest.Digest) (nodeagent.Presence, error) {
	presence, err := r.check(ctx, ref, want)
	if err != nil {
		return nodeagent.Presence{}, r.translate(ctx, fmt.Errorf("check %s: %w", ref, err))
	}
	return presence, nil
}

func (r *Runtime) check(ctx context.Context, ref imageref.Reference, want digest.Digest) (nodeagent.Presence, error) {
	var target ocispec.Descriptor
	for _, name := range ref.Names(want) {
		record, err := r.client.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) || err == nil && record.Target.Digest != want {
			return nodeagent.Presence{}, nil
		}
		if err != nil {
			return nodeagent.Presence{}, err
		}
		target = record.Target
	}
	local, err := r.inspect(ctx, target)
	if errors.Is(err, nodeagent.ErrImageInvalid) {
		return nodeagent.Presence{}, nil // a pull says why
	}
	if err != nil || !local.complete() {
		return nodeagent.Presence{}, err
	}
	return nodeagent.Presence{Present: true, SizeBytes: local.size}, nil
}

// localContent is the part of an image that is in the content store and the snapshotter.
type localContent struct {
	// manifest is the one for the node's platform; nil where it is missing, or the index above it.
	manifest *ocispec.Manifest
	// size is the compressed size of config and layers; missing is the part of it that is not
	// there.
	size, missing int64
	unpacked      bool
	// packed is the compressed size of the layers that are yet to be unpacked.
	packed int64
}

func (c localContent) complete() bool {
	return c.manifest != nil && c.missing == 0 && c.unpacked
}

// inspect looks up which part of an image is there. Nothing there is no error. It returns
// ErrImageInvalid for what is no image that can run.
func (r *Runtime) inspect(ctx context.Context, target ocispec.Descriptor) (localContent, error) {
	var local localContent
	store := r.store()
	manifest, err := images.Manifest(ctx, store, target, r.matcher)
	if errdefs.IsNotFound(err) {
		return local, nil
	}
	if err != nil {
		return local, err
	}
	if err := checkRunnable(manifest); err != nil {
		return local, err
	}
	local.manifest = &manifest
	for _, desc := range append(manifest.Layers[:len(manifest.Layers):len(manifest.Layers)], manifest.Config) {
		local.size += desc.Size
		present, err := hasBlob(ctx, store, desc)
		if err != nil {
			return local, err
		}
		if !present {
			local.missing += desc.Size
		}
	}
	if local.unpacked, err = r.isUnpacked(ctx, manifest.Config); err != nil || local.unpacked {
		return local, err
	}
	local.packed, err = r.packedSize(ctx, manifest)
	return local, err
}

// packedSize is the compressed size of the layers without a snapshot. Without a config, which names the
// snapshots, that is all.
func (r *Runtime) packedSize(ctx context.Context, manifest ocispec.Manifest) (size int64, err error) {
	diffIDs, err := images.RootFS(ctx, r.store(), manifest.Config)
	if err != nil && !errdefs.IsNotFound(err) {
		return 0, err
	}
	daemon, err := r.daemon(ctx)
	if err != nil {
		return 0, err
	}
	chain := identity.ChainIDs(diffIDs)
	for i, layer := range manifest.Layers {
		if i < len(chain) {
			_, err := r.client.SnapshotService(daemon.snapshotter).Stat(ctx, chain[i].String())
			if err == nil {
				continue
			}
			if !errdefs.IsNotFound(err) {
				return 0, err
			}
		}
		size += layer.Size
	}
	return size, nil
}

// forPlatform leaves of the children of an index the one manifest for the node's platform.
func (r *Runtime) forPlatform(children images.HandlerFunc) images.HandlerFunc {
	return images.LimitManifests(images.FilterPlatforms(children, r.matcher), r.matcher, 1)
}

func hasBlob(ctx context.Context, store content.InfoProvider, desc ocispec.Descriptor) (bool, error) {
	info, err := store.Info(ctx, desc.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && info.Size == desc.Size, err
}

// isUnpacked reports whether the snapshot of the topmost layer exists, and so those below it.
func (r *Runtime) isUnpacked(ctx context.Context, config ocispec.Descriptor) (bool, error) {
	diffIDs, err := images.RootFS(ctx, r.store(), config)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if len(diffIDs) == 0 {
		return true, nil
	}
	daemon, err := r.daemon(ctx)
	if err != nil {
		return false, err
	}
	_, err = r.client.SnapshotService(daemon.snapshotter).Stat(ctx, identity.ChainID(diffIDs).String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// describe returns the descriptor of an image's digest, and whether the node knows it: from any
// image record that points at it, or from the content that an unfinished pull has left.
func (r *Runtime) describe(ctx context.Context, dgst digest.Digest) (ocispec.Descriptor, bool, error) {
	records, err := r.client.ImageService().List(ctx, "target.digest=="+dgst.String())
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	if len(records) > 0 {
		return records[0].Target, true, nil
	}
	store := r.store()
	info, err := store.Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, false, nil
	}
	if err != nil || info.Size > maxInMemory {
		return ocispec.Descriptor{}, false, err
	}
	desc := ocispec.Descriptor{Digest: dgst, Size: info.Size}
	raw, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	desc.MediaType = mediaType(raw, "")
	return desc, desc.MediaType != "", nil
}

// mediaType returns the first of these: the type that the manifest states, the type that its server
// stated, the type that its fields suggest. It is empty if raw is no manifest.
func mediaType(raw []byte, served string) string {
	var manifest struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	if json.Unmarshal(raw, &manifest) != nil {
		return ""
	}
	switch {
	case manifest.MediaType != "":
		return manifest.MediaType
	case images.IsIndexType(served) || images.IsManifestType(served):
		return served
	case manifest.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	case manifest.Config != nil:
		return ocispec.MediaTypeImageManifest
	default:
		return ""
	}
}
