// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// leaseLifetime is when containerd itself ends a lease, so that an agent which never comes back
// leaves nothing for ever. A pull renews a lease that is past half of it.
const leaseLifetime = 24 * time.Hour

// unwantedGrace is how long an image's unfinished content stays after its entry has left the spec.
// A seed that replaces this one gets the blobs from here, through the mirror.
const unwantedGrace = 10 * time.Minute

// ensureLease finds or creates the lease that keeps all content fetched for an image. It has the
// image's name, so that a later try finds it, also in another process.
func (r *Runtime) ensureLease(ctx context.Context, ref imageref.Reference) (context.Context, error) {
	existing, err := r.listLeases(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(existing) == 0 || time.Since(existing[0].CreatedAt) > leaseLifetime/2 {
		fresh, err := r.client.LeasesService().Create(ctx, leases.WithID(leaseID(ref, time.Now())),
			leases.WithExpiration(leaseLifetime), leases.WithLabel(leaseLabel, ref.String()))
		if err != nil {
			return nil, fmt.Errorf("create lease for %s: %w", ref, err)
		}
		existing = slices.Insert(existing, 0, fresh)
	}
	for _, old := range existing[1:] {
		if err := r.renewLease(ctx, old, existing[0]); err != nil {
			return nil, err
		}
	}
	return leases.WithLease(ctx, existing[0].ID), nil
}

// listLeases returns the leases of an image, the latest first. There is at most one, unless an
// agent was killed while it renewed it.
func (r *Runtime) listLeases(ctx context.Context, ref imageref.Reference) ([]leases.Lease, error) {
	existing, err := r.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%q", leaseLabel, ref.String()))
	if err != nil {
		return nil, fmt.Errorf("list leases for %s: %w", ref, err)
	}
	slices.SortFunc(existing, func(a, b leases.Lease) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return existing, nil
}

// renewLease gives the content of one lease to another and deletes the first: containerd cannot
// extend a lease.
func (r *Runtime) renewLease(ctx context.Context, from, to leases.Lease) error {
	manager := r.client.LeasesService()
	resources, err := manager.ListResources(ctx, from)
	if errdefs.IsNotFound(err) {
		return nil // it has just ended
	}
	if err != nil {
		return fmt.Errorf("list resources of lease %q: %w", from.ID, err)
	}
	for _, resource := range resources {
		if err := manager.AddResource(ctx, to, resource); err != nil {
			return fmt.Errorf("renew lease %q: %w", from.ID, err)
		}
	}
	return r.deleteLease(ctx, from)
}

func (r *Runtime) deleteLease(ctx context.Context, lease leases.Lease) error {
	err := r.client.LeasesService().Delete(ctx, lease)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %q: %w", lease.ID, err)
	}
	return nil
}

// deleteLeases deletes the leases of an image once image records keep its content.
func (r *Runtime) deleteLeases(ctx context.Context, ref imageref.Reference) error {
	existing, err := r.listLeases(ctx, ref)
	for _, lease := range existing {
		err = errors.Join(err, r.deleteLease(ctx, lease))
	}
	return err
}

func leaseID(ref imageref.Reference, at time.Time) string {
	return fmt.Sprintf("sluice-%.24x-%d", sha256.Sum256([]byte(ref.String())), at.UnixNano())
}

// Retain implements nodeagent.Runtime.
func (r *Runtime) Retain(ctx context.Context, retained []nodeagent.Retained) error {
	pinned := map[string]bool{}
	wanted, names := map[string]bool{}, map[string]bool{}
	for _, image := range retained {
		wanted[image.Ref.String()] = true
		names[image.Ref.String()] = true
		if image.Digest != "" {
			for _, name := range image.Ref.Names(image.Digest) {
				names[name] = true
			}
		}
		if image.Pinned && image.Digest != "" {
			for _, name := range image.Ref.Names(image.Digest) {
				pinned[name] = true
			}
		}
	}
	r.disk.setWanted(names)
	if err := r.setPins(ctx, pinned); err != nil {
		return r.translate(ctx, err)
	}
	return r.translate(ctx, r.deleteUnwantedLeases(ctx, wanted))
}

// setPins sets and removes our pins, by image name. It updates only the records that change.
func (r *Runtime) setPins(ctx context.Context, pinned map[string]bool) error {
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

// deleteUnwantedLeases deletes the leases of images that were unwanted for unwantedGrace.
func (r *Runtime) deleteUnwantedLeases(ctx context.Context, wanted map[string]bool) error {
	existing, err := r.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q", leaseLabel))
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	now, unwanted := time.Now(), map[string]time.Time{}
	for _, lease := range existing {
		if wanted[lease.Labels[leaseLabel]] {
			continue
		}
		since, known := r.unwantedSince[lease.ID]
		if !known {
			since = now
		}
		if now.Sub(since) < unwantedGrace {
			unwanted[lease.ID] = since
		} else if err := r.deleteLease(ctx, lease); err != nil {
			return err
		}
	}
	r.unwantedSince = unwanted
	return nil
}
