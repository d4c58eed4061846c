// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// makeRoom gives up one thing that only Sluice has brought, and that nothing needs any more: unfinished
// content or, if all such images together may have so many bytes, the oldest image. It reports whether
// there was one.
func (r *Runtime) makeRoom(ctx context.Context, bytes int64) (freed bool, err error) {
	r.disk.clearing.Lock()
	defer r.disk.clearing.Unlock()
	if freed, err = r.dropLeases(ctx, func(l leases.Lease) bool { return !r.disk.wants(l.Labels[leaseLabel]) }); freed || err != nil {
		return freed, err
	}
	needless, err := r.needlessImages(ctx)
	if err != nil || len(needless) == 0 {
		return false, err
	}
	var sum int64
	for _, image := range needless {
		local, err := r.inspect(ctx, image.target)
		if err != nil {
			return false, err
		}
		sum += int64(float64(local.size) * (1 + unpackedFactor))
	}
	if sum < bytes {
		return false, nil
	}
	return true, r.giveUp(ctx, needless[0])
}

// wants reports whether the spec may have an image. Before the spec is known, it may have any.
func (d *disk) wants(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wanted == nil || d.wanted[name]
}

// setWanted takes up which names the spec has.
func (d *disk) setWanted(names map[string]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = names
}

// pulling reports whether a pull of that name or digest runs.
func (d *disk) pulling(nameOrDigest string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range d.accounts {
		if a.image.Ref.String() == nameOrDigest || a.digest.String() == nameOrDigest {
			return true
		}
	}
	return false
}

// dropLeases deletes the leases of images which no pull is bringing, with what they alone have kept.
func (r *Runtime) dropLeases(ctx context.Context, which func(leases.Lease) bool) (any bool, err error) {
	existing, err := r.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q", leaseLabel))
	if err != nil {
		return false, fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range existing {
		if r.disk.pulling(lease.Labels[leaseLabel]) || !which(lease) {
			continue
		}
		r.Log.Info("Gave up unfinished content for room on the disk", "image", lease.Labels[leaseLabel])
		any, err = true, errors.Join(err, r.dropLease(ctx, lease))
	}
	return any, err
}

// needless is an image that only Sluice has brought and that nothing needs any more.
type needless struct {
	target ocispec.Descriptor
	names  []string
	since  time.Time
}

// needlessImages are those, the oldest first. All records of such an image are Sluice's.
func (r *Runtime) needlessImages(ctx context.Context) ([]needless, error) {
	records, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	used, err := r.usedImages(ctx)
	if err != nil {
		return nil, err
	}
	found, needed := map[digest.Digest]needless{}, map[digest.Digest]bool{}
	for _, record := range records {
		d := record.Target.Digest
		image := found[d]
		image.target, image.names = record.Target, append(image.names, record.Name)
		if record.UpdatedAt.After(image.since) {
			image.since = record.UpdatedAt
		}
		found[d] = image
		needed[d] = needed[d] || record.Labels[broughtLabel] == "" || record.Labels[pinnedLabel] == pinnedValue || used[record.Name] ||
			!isID(record.Name) && r.disk.wants(record.Name) || r.disk.pulling(record.Name) || r.disk.pulling(d.String())
	}
	var all []needless
	for d, image := range found {
		// An image that has only its id may still be being recorded.
		if !needed[d] && slices.ContainsFunc(image.names, func(name string) bool { return !isID(name) }) {
			all = append(all, image)
		}
	}
	slices.SortFunc(all, func(x, y needless) int {
		return cmp.Or(x.since.Compare(y.since), cmp.Compare(x.target.Digest, y.target.Digest))
	})
	return all, nil
}

// isID reports whether the name of a record is the id that CRI gives an image.
func isID(name string) bool { return digest.Digest(name).Validate() == nil }

// usedImages are the names of the images of which there are containers.
func (r *Runtime) usedImages(ctx context.Context) (map[string]bool, error) {
	connection, err := r.connection()
	if err != nil {
		return nil, err
	}
	answer, err := cri.NewRuntimeServiceClient(connection).ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask CRI for containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range answer.GetContainers() {
		used[c.GetImageId()], used[c.GetImageRef()], used[c.GetImage().GetImage()] = true, true, true
	}
	return used, nil
}

// giveUp deletes an image, the name that keeps its content last.
func (r *Runtime) giveUp(ctx context.Context, image needless) error {
	r.Log.Info("Gave up an image that nothing needs for room on the disk", "names", image.names, "digest", image.target.Digest)
	for i, name := range image.names {
		var opts []images.DeleteOpt
		if i == len(image.names)-1 {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := r.client.ImageService().Delete(ctx, name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("give up image %q: %w", name, err)
		}
	}
	return nil
}

// pressureInterval is the time between two looks whether a file system is past its line. The kubelet
// looks as often.
const pressureInterval = 10 * time.Second

// relieve gives up what nothing needs while a file system is past its line, until ctx ends. That is all
// unfinished content that no pull is using, wanted or not: the kubelet cannot see it, and would evict Pods
// for it.
func (r *Runtime) relieve(ctx context.Context) {
	for sleep(ctx, pressureInterval) == nil {
		if err := r.relieveOnce(ctx); err != nil && ctx.Err() == nil {
			r.Log.Error(err, "Failed to make room on the disk")
		}
	}
}

func (r *Runtime) relieveOnce(ctx context.Context) error {
	if r.MinFreeDisk <= 0 {
		return nil
	}
	daemon, err := r.daemon(ctx)
	if err != nil {
		return err
	}
	pastLine := func() bool {
		filesystems, lookErr := r.lookUp(daemon)
		err = errors.Join(err, lookErr)
		return slices.ContainsFunc(filesystems, filesystem.pastLine)
	}
	if !pastLine() {
		return err
	}
	r.disk.clearing.Lock()
	_, err = r.dropLeases(ctx, func(leases.Lease) bool { return true })
	r.disk.clearing.Unlock()
	for err == nil && pastLine() {
		freed, roomErr := r.makeRoom(ctx, 0)
		if err = errors.Join(err, roomErr); !freed {
			break
		}
	}
	return err
}
