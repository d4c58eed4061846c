// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// createdTopic is that of the event by which containerd tells of a new blob.
const createdTopic = "/content/create"

// announce tells the node's mirror of the content of an image that is there. Spegel advertises a
// blob to its peers only if the label of its source is there within 650 ms of the event that the
// blob was created, and does not look a second time. The label may come later, on a slow disk, or
// not at all: imported images have none. So missing labels are added, and the event is sent once
// more for every blob, since nobody can tell for which of them the label was late.
func (r *Runtime) announce(ctx context.Context, ref imageref.Reference, target ocispec.Descriptor) error {
	store := r.store()
	label, err := docker.AppendDistributionSourceLabel(store, ref.String())
	if err != nil {
		return err
	}
	children := r.forPlatform(images.ChildrenHandler(store))
	announceOne := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := store.Info(ctx, desc.Digest)
		switch {
		case errdefs.IsNotFound(err):
			return nil, images.ErrSkipDesc
		case err != nil:
			return nil, err
		}
		if !hasSource(info, ref) {
			if _, err := label(ctx, desc); err != nil {
				return nil, err
			}
		}
		event := &eventtypes.ContentCreate{Digest: desc.Digest.String(), Size: info.Size}
		return nil, r.client.EventService().Publish(ctx, createdTopic, event)
	}
	if err := images.Walk(ctx, images.Handlers(images.HandlerFunc(announceOne), children), target); err != nil {
		return fmt.Errorf("announce content to the mirror: %w", err)
	}
	return nil
}

// hasSource reports whether the labels of a blob name the image's repository as a source.
func hasSource(info content.Info, ref imageref.Reference) bool {
	for label, repository := range sourceLabel(ref) {
		if !slices.Contains(strings.Split(info.Labels[label], ","), repository) {
			return false
		}
	}
	return true
}
