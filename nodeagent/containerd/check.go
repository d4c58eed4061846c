// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
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
	held, err := r.inspect(ctx, target)
	if err != nil || !held.complete() {
		return nodeagent.Presence{}, err
	}
	return nodeagent.Presence{Present: true, SizeBytes: held.size}, nil
}

// holding is what the content store and the snapshotter hold of an image.
type holding struct {
	// manifest is the node's platform's; nil where it, or what leads to it, is missing.
	manifest *ocispec.Manifest
	// size is the compressed size, and missing the part of it that is not there.
	size, missing int64
	unpacked      bool
}

func (h holding) complete() bool {
	return h.manifest != nil && h.missing == 0 && h.unpacked
}

// inspect looks up what is there of an image. It is no error if nothing is.
func (r *Runtime) inspect(ctx context.Context, target ocispec.Descriptor) (holding, error) {
	var held holding
	store := r.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, target, r.matcher)
	if errdefs.IsNotFound(err) {
		return held, nil
	}
	if err != nil {
		return held, err
	}
	held.manifest = &manifest
	for _, desc := range append(manifest.Layers[:len(manifest.Layers):len(manifest.Layers)], manifest.Config) {
		held.size += desc.Size
		there, err := has(ctx, store, desc)
		if err != nil {
			return held, err
		}
		if !there {
			held.missing += desc.Size
		}
	}
	held.unpacked, err = r.unpacked(ctx, manifest.Config)
	return held, err
}

func has(ctx context.Context, store content.InfoProvider, desc ocispec.Descriptor) (bool, error) {
	info, err := store.Info(ctx, desc.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && info.Size == desc.Size, err
}

// unpacked says whether the snapshot of the whole chain of layers exists.
func (r *Runtime) unpacked(ctx context.Context, config ocispec.Descriptor) (bool, error) {
	diffIDs, err := images.RootFS(ctx, r.client.ContentStore(), config)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if len(diffIDs) == 0 {
		return true, nil
	}
	_, err = r.client.SnapshotService(r.Snapshotter).Stat(ctx, identity.ChainID(diffIDs).String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// locate describes a digest by any image record that points at it, or by the content
// itself where only an unfinished pull has left it.
func (r *Runtime) locate(ctx context.Context, dgst digest.Digest) (ocispec.Descriptor, bool, error) {
	records, err := r.client.ImageService().List(ctx, "target.digest=="+dgst.String())
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	if len(records) > 0 {
		return records[0].Target, true, nil
	}
	store := r.client.ContentStore()
	info, err := store.Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, false, nil
	}
	if err != nil || info.Size > maxManifest {
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

// mediaType is what a manifest says of itself, or else what its server said, or else
// what it looks like.
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
