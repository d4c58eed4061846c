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

// leaseLifetime ends what an agent left behind that never came back. A try that finds a
// lease past its half renews it.
const leaseLifetime = 24 * time.Hour

// lingering is how long what was fetched of an image stays after the spec last named it:
// who takes a failed seed's place gets from it, through the mirror, what it had brought.
const lingering = 10 * time.Minute

// lease holds all that is fetched for an image. It bears the image's name, so that a
// later try, also of another process, finds what is there already.
func (r *Runtime) lease(ctx context.Context, ref imageref.Reference) (context.Context, error) {
	held, err := r.leases(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(held) == 0 || time.Since(held[0].CreatedAt) > leaseLifetime/2 {
		fresh, err := r.client.LeasesService().Create(ctx, leases.WithID(leaseID(ref, time.Now())),
			leases.WithExpiration(leaseLifetime), leases.WithLabel(leaseLabel, ref.String()))
		if err != nil {
			return nil, fmt.Errorf("create lease for %s: %w", ref, err)
		}
		held = slices.Insert(held, 0, fresh)
	}
	for _, old := range held[1:] {
		if err := r.move(ctx, old, held[0]); err != nil {
			return nil, err
		}
	}
	return leases.WithLease(ctx, held[0].ID), nil
}

// leases of an image, the latest first. There is one, unless an agent was killed while
// it renewed it.
func (r *Runtime) leases(ctx context.Context, ref imageref.Reference) ([]leases.Lease, error) {
	held, err := r.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%q", leaseLabel, ref.String()))
	if err != nil {
		return nil, fmt.Errorf("list leases for %s: %w", ref, err)
	}
	slices.SortFunc(held, func(a, b leases.Lease) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return held, nil
}

// move hands what one lease holds to another, and ends it: containerd cannot put off the
// end of a lease.
func (r *Runtime) move(ctx context.Context, from, to leases.Lease) error {
	manager := r.client.LeasesService()
	resources, err := manager.ListResources(ctx, from)
	if errdefs.IsNotFound(err) {
		return nil // it has just ended
	}
	if err != nil {
		return fmt.Errorf("list what lease %q holds: %w", from.ID, err)
	}
	for _, resource := range resources {
		if err := manager.AddResource(ctx, to, resource); err != nil {
			return fmt.Errorf("renew lease %q: %w", from.ID, err)
		}
	}
	return r.release(ctx, from)
}

func (r *Runtime) release(ctx context.Context, lease leases.Lease) error {
	err := r.client.LeasesService().Delete(ctx, lease)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %q: %w", lease.ID, err)
	}
	return nil
}

// releaseImage ends the leases of an image whose records hold its content.
func (r *Runtime) releaseImage(ctx context.Context, ref imageref.Reference) error {
	held, err := r.leases(ctx, ref)
	for _, lease := range held {
		err = errors.Join(err, r.release(ctx, lease))
	}
	return err
}

func leaseID(ref imageref.Reference, at time.Time) string {
	return fmt.Sprintf("sluice-%.24x-%d", sha256.Sum256([]byte(ref.String())), at.UnixNano())
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
		} else if err := r.release(ctx, lease); err != nil {
			return err
		}
	}
	r.unwanted = unwanted
	return nil
}
