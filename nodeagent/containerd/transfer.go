// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// announceTimeout bounds what is done after a transfer that failed, perhaps with the daemon.
const announceTimeout = 5 * time.Second

// transfer pulls through the daemon's transfer service: by the digest if it is known, and otherwise
// by the tag, which costs the registry one HEAD.
func (r *Runtime) transfer(ctx context.Context, req nodeagent.PullRequest, from origin, a *account) (ocispec.Descriptor, error) {
	began := time.Now()
	target, err := r.transferUnpacking(ctx, req, from, a)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	local, err := r.inspect(ctx, target)
	if err == nil && local.manifest != nil && local.missing > 0 {
		// A transfer with unpacking leaves out the layers whose snapshots are already there.
		// Mirrors serve layers, so one without unpacking fetches those too.
		from.ref = req.Ref.WithDigest(target.Digest)
		_, err = r.transferFrom(ctx, req, from, a)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	received, err := r.committedSince(ctx, target, began)
	a.meter.setBytes(received)
	return target, err
}

// transferUnpacking has the daemon unpack what it pulls, if its transfer service is configured for
// the snapshotter. Otherwise it leaves the image packed.
func (r *Runtime) transferUnpacking(ctx context.Context, req nodeagent.PullRequest, from origin, a *account) (ocispec.Descriptor, error) {
	daemon, err := r.daemon(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if !daemon.leavesPacked {
		target, err := r.transferFrom(ctx, req, from, a, image.WithUnpack(r.platform, daemon.snapshotter))
		if err == nil || !strings.Contains(err.Error(), noUnpackPlatform) {
			return target, err
		}
		r.facts.noteLeavesPacked()
	}
	return r.transferFrom(ctx, req, from, a)
}

// noUnpackPlatform is what the transfer service says, before it fetches anything, if its
// configuration does not list the snapshotter. There is no error value for it.
const noUnpackPlatform = "no unpack platforms defined"

// committedSince is the size of the image's content that was committed since then. The sum of the
// progress events is less exact, since the last of them may be lost.
func (r *Runtime) committedSince(ctx context.Context, target ocispec.Descriptor, since time.Time) (size int64, err error) {
	store := r.store()
	children := r.forPlatform(images.ChildrenHandler(store))
	err = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := store.Info(ctx, desc.Digest)
		if err != nil {
			return nil, err
		}
		if info.CreatedAt.After(since) {
			size += info.Size
		}
		return children(ctx, desc)
	}), target)
	if errdefs.IsNotFound(err) {
		return size, nil // nothing for this platform
	}
	return size, err
}

func (r *Runtime) transferFrom(ctx context.Context, req nodeagent.PullRequest, from origin, a *account, opts ...image.StoreOpt) (ocispec.Descriptor, error) {
	unfinished, err := r.client.ContentStore().ListStatuses(ctx)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("list unfinished ingests: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := newTracker(a.meter, unfinished)
	defer t.close()
	measured := make(chan struct{})
	go func() {
		defer close(measured)
		cancel(r.reserveDiskForSeed(ctx, t, a))
	}()
	defer func() { <-measured }()
	defer cancel(nil)

	source, err := from.registry(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	store := image.NewStore(req.Ref.String(), append(opts,
		image.WithPlatforms(r.platform), image.WithImageLabels(recordLabels(req.Pinned)))...)
	if err := r.client.Transfer(ctx, source, store, transfer.WithProgress(t.onEvent)); err != nil {
		r.announceReceived(ctx, req.Ref, from, t)
		cause := context.Cause(ctx)
		if isFinal(cause) {
			return ocispec.Descriptor{}, cause
		}
		if schema1Text.MatchString(err.Error()) {
			return ocispec.Descriptor{}, fmt.Errorf("%w: %w", errSchema1, err)
		}
		return ocispec.Descriptor{}, err
	}
	record, err := r.client.ImageService().Get(ctx, req.Ref.String())
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look up what was pulled: %w", err)
	}
	// The daemon rewrites a manifest whose config has the type that Docker gave it long ago, and then
	// the image has another digest than everywhere else. The manifest as it came runs as well.
	if root, known, err := r.transferred(ctx, from, t); known || err != nil {
		return root, err
	}
	return record.Target, nil
}

// transferred describes the root of what a transfer has pulled, or false if it is not known or not
// there. The daemon's event that names it may come after the transfer has ended, or never.
func (r *Runtime) transferred(ctx context.Context, from origin, t *tracker) (ocispec.Descriptor, bool, error) {
	if dgst := from.ref.Digest(); dgst != "" {
		return r.describe(ctx, dgst)
	}
	root, known := t.target()
	return root, known, nil
}

// origin is what a transfer pulls, and from where.
type origin struct {
	ref imageref.Reference
	// hostsDir is the directory of the hosts.toml files.
	hostsDir   string
	credential nodeagent.Credential
}

func (o origin) registry(ctx context.Context) (*registry.OCIRegistry, error) {
	options := []registry.Opt{registry.WithHostDir(o.hostsDir)}
	if auth := basicAuth(o.credential); auth != nil {
		options = append(options, registry.WithCredentials(credentialHelper(auth)))
	}
	return registry.NewOCIRegistry(ctx, o.ref.String(), options...)
}

// announceReceived tells the mirror of what a transfer that failed has received: the daemon labels a
// manifest after its children, so that the next seed would fetch it from the registry again.
func (r *Runtime) announceReceived(ctx context.Context, ref imageref.Reference, from origin, t *tracker) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceTimeout)
	defer cancel()
	target, known, err := r.transferred(ctx, from, t)
	if known {
		err = r.announce(ctx, ref, target)
	}
	if err != nil {
		r.Log.V(1).Info("Left the mirror without what a failed pull has received", "image", ref.String(), "error", err.Error())
	}
}

// reserveDiskForSeed waits until the manifests are there, sets the size of the image, and reserves
// the space on the disk. It returns ErrInsufficientDisk or ErrImageInvalid at once, and nil when ctx
// ends.
func (r *Runtime) reserveDiskForSeed(ctx context.Context, t *tracker, a *account) error {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		if target, ok := t.target(); ok {
			if err := r.reserveKnown(ctx, a, target.Digest); isFinal(err) {
				return err
			}
			local, err := r.inspect(ctx, target)
			if err == nil && local.manifest != nil {
				a.meter.setSize(local.size)
				if err := r.reserveDisk(ctx, a, target.Digest, expect(local)); isFinal(err) {
					return err
				}
				<-ctx.Done()
				return nil
			}
			if isFinal(err) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// credentialHelper gives the daemon a credential when it asks for one.
type credentialHelper func(host string) (username, secret string, err error)

func (h credentialHelper) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	username, secret, err := h(host)
	return registry.Credentials{Host: host, Username: username, Secret: secret}, err
}
