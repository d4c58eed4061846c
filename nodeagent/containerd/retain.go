// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/sluice-dev/sluice/api/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// leaseLifetime ends what an agent left behind that never came back. No pull of one
// image takes as long.
const leaseLifetime = 24 * time.Hour

// lingering is how long what was fetched of an image stays after the spec last named it:
// who takes a failed seed's place gets from it, through the mirror, what it had brought.
const lingering = 10 * time.Minute

// lease holds all that is fetched for an image. It has the same name each time, so
// that a later try, also of another process, finds what is there already.
func (r *Runtime) lease(ctx context.Context, ref imageref.Reference) (context.Context, error) {
	id := leaseID(ref)
	_, err := r.client.LeasesService().Create(ctx, leases.WithID(id), leases.WithExpiration(leaseLifetime),
		leases.WithLabel(leaseLabel, ref.String()))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create lease %q: %w", id, err)
	}
	return leases.WithLease(ctx, id), nil
}

func (r *Runtime) release(ctx context.Context, id string) error {
	err := r.client.LeasesService().Delete(ctx, leases.Lease{ID: id})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %q: %w", id, err)
	}
	return nil
}

func leaseID(ref imageref.Reference) string {
	return fmt.Sprintf("sluice-%x", sha256.Sum256([]byte(ref.String())))[:32]
}

// Retain implements nodeagent.Runtime.
func (r *Runtime) Retain(ctx context.Context, retained []nodeagent.Retained) error {
	pinned := map[string]bool{}
	wanted := map[string]bool{}
	for _, image := range retained {
		wanted[image.Ref.String()] = true
		if image.Pinned && image.Digest != "" {
			for _, name := range image.Ref.Names(image.Digest) {
				pinned[name] = true
			}
		}
	}
	if err := r.pin(ctx, pinned); err != nil {
		return r.translate(ctx, err)
	}
	return r.translate(ctx, r.releaseOthers(ctx, wanted))
}

// pin sets and takes off our pins where that changes anything.
func (r *Runtime) pin(ctx context.Context, pinned map[string]bool) error {
	store := r.client.ImageService()
	records, err := store.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, record := range records {
		wanted := images.Image{Name: record.Name, Target: record.Target}
		var fields []string
		if pinned[record.Name] {
			wanted.Labels = recordLabels(true)
			fields = changedFields(record, wanted)
		} else if record.Labels[ourPinLabel] != "" {
			fields = []string{"labels." + pinnedLabel, "labels." + ourPinLabel}
		}
		if len(fields) == 0 {
			continue
		}
		if _, err := store.Update(ctx, wanted, fields...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("set pin of image %q: %w", record.Name, err)
		}
	}
	return nil
}

// releaseOthers drops the leases of images that nobody has wanted for a while.
func (r *Runtime) releaseOthers(ctx context.Context, wanted map[string]bool) error {
	held, err := r.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q", leaseLabel))
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	now, unwanted := time.Now(), map[string]time.Time{}
	for _, lease := range held {
		if wanted[lease.Labels[leaseLabel]] {
			continue
		}
		since, known := r.unwanted[lease.ID]
		if !known {
			since = now
		}
		if now.Sub(since) < lingering {
			unwanted[lease.ID] = since
		} else if err := r.release(ctx, lease.ID); err != nil {
			return err
		}
	}
	r.unwanted = unwanted
	return nil
}
