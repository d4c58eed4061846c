// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// The labels that CRI puts on image records and reads there (containerd, internal/cri/labels).
const (
	managedLabel, managedValue = "io.cri-containerd.image", "managed"
	pinnedLabel, pinnedValue   = "io.cri-containerd.pinned", "pinned"
)

// Sluice's own labels: ourPinLabel is on a record that Sluice has pinned, broughtLabel on one that it has
// made, and leaseLabel, on a lease, names its image.
const (
	ourPinLabel, ourPinValue   = "sluice.dev/pinned", "true"
	broughtLabel, broughtValue = "sluice.dev/brought", "true"
	leaseLabel                 = "sluice.dev/image"
)

func recordLabels(pinned bool) map[string]string {
	labels := map[string]string{managedLabel: managedValue, broughtLabel: broughtValue}
	if pinned {
		labels[pinnedLabel], labels[ourPinLabel] = pinnedValue, ourPinValue
	}
	return labels
}

// recordNames makes the image records that a pull by CRI makes, in its order: the image's id, which
// is the digest of its config and keeps the content for as long as a container of it runs; then
// repo@digest; the tag last. A name that points to another digest is moved.
func (r *Runtime) recordNames(ctx context.Context, ref imageref.Reference, target, config ocispec.Descriptor, pinned bool) error {
	if err := r.ensureRecord(ctx, config.Digest.String(), target, recordLabels(false)); err != nil {
		return err
	}
	names := ref.Names(target.Digest)
	for at := range names {
		if err := r.ensureRecord(ctx, names[len(names)-1-at], target, recordLabels(pinned)); err != nil {
			return err
		}
	}
	return nil
}

// ensureRecord creates an image record, or updates the fields that differ. It leaves other labels
// as they are.
func (r *Runtime) ensureRecord(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) error {
	store := r.client.ImageService()
	for {
		wanted := images.Image{Name: name, Target: target, Labels: labels}
		old, err := store.Get(ctx, name)
		if errdefs.IsNotFound(err) {
			_, err = store.Create(ctx, wanted)
			if errdefs.IsAlreadyExists(err) {
				continue // another client has just created it
			}
			return wrapName(name, err)
		}
		if err != nil {
			return wrapName(name, err)
		}
		fields := changedFields(old, wanted)
		if len(fields) == 0 {
			return nil
		}
		if _, err = store.Update(ctx, wanted, fields...); !errdefs.IsNotFound(err) {
			return wrapName(name, err)
		}
	}
}

func wrapName(name string, err error) error {
	if err != nil {
		return fmt.Errorf("record image %q: %w", name, err)
	}
	return nil
}

// changedFields lists the fields to update. A pin that another client has set gets no label of
// ours, so that it stays when our pins are taken off; nor does a record that another client has made,
// unless it is moved.
func changedFields(old, wanted images.Image) []string {
	var fields []string
	moved := old.Target.Digest != wanted.Target.Digest
	if moved {
		fields = append(fields, "target")
	}
	othersPin := old.Labels[pinnedLabel] == pinnedValue && old.Labels[ourPinLabel] == ""
	for label, value := range wanted.Labels {
		notOurs := label == ourPinLabel && othersPin || label == broughtLabel && !moved
		if old.Labels[label] != value && !notOurs {
			fields = append(fields, "labels."+label)
		}
	}
	return fields
}
