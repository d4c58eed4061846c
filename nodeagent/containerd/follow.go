// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// follow brings the content from the mirrors, each blob as soon as they have it, and
// unpacks behind it.
func (r *Runtime) follow(ctx context.Context, req nodeagent.PullRequest, m *meter) (ocispec.Descriptor, error) {
	m.resolved(req.Digest)
	hosts, err := mirror.ReadHosts(ctx, r.RegistryConfigPath, req.Ref.Domain(), nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer hosts.Close()
	f := &fetcher{
		store:   r.client.ContentStore(),
		origin:  content.WithLabels(sourceLabel(req.Ref)),
		streams: r.streams,
		meter:   m,
		mirrors: &mirror.Client{
			Hosts:      hosts.Mirrors,
			Registry:   req.Ref.Domain(),
			Repository: req.Ref.Path(),
			UserAgent:  r.UserAgent,
			Throttle:      &r.throttle,
			SilenceTimeout:   r.NoProgressTimeout,
		},
	}
	target, known, err := r.locate(ctx, req.Digest)
	if err == nil && !known {
		target, err = f.root(ctx, req.Digest)
	}
	if err == nil {
		err = r.measure(ctx, target, f, m)
	}
	if err == nil {
		err = r.followAll(ctx, req, target, f)
	}
	if err != nil {
		return ocispec.Descriptor{}, f.explain(ctx, err)
	}
	return target, nil
}

// sourceLabel says where content comes from, in the form of containerd's own pulls, which
// leave out the port.
func sourceLabel(ref imageref.Reference) map[string]string {
	registry := url.URL{Host: ref.Domain()}
	return map[string]string{labels.LabelDistributionSource + "." + registry.Hostname(): ref.Path()}
}

// measure brings the manifests, which tell the size, and refuses what does not fit.
func (r *Runtime) measure(ctx context.Context, target ocispec.Descriptor, f *fetcher, m *meter) error {
	store := r.client.ContentStore()
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), r.matcher), r.matcher, 1)
	for desc := target; images.IsIndexType(desc.MediaType); {
		manifests, err := children(ctx, desc)
		if err != nil {
			if errdefs.IsNotFound(err) {
				return fmt.Errorf("%w: %s has nothing for %s", nodeagent.ErrPlatformNotProvided, desc.Digest, platformName(r.platform))
			}
			return err
		}
		desc = manifests[0]
		if err := f.fetch(ctx, desc); err != nil {
			return err
		}
	}
	held, err := r.inspect(ctx, target)
	if err != nil {
		return err
	}
	m.sized(held.size)
	return r.room(ctx, m, held.missing)
}

// followAll walks from the target down as containerd's own pulls do.
func (r *Runtime) followAll(ctx context.Context, req nodeagent.PullRequest, target ocispec.Descriptor, f *fetcher) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store := r.client.ContentStore()
	source, err := docker.AppendDistributionSourceLabel(store, req.Ref.String())
	if err != nil {
		return err
	}
	// The labels that keep children from garbage collection as long as their parent.
	children := images.SetChildrenMappedLabels(store, images.ChildrenHandler(store), nil)
	children = images.LimitManifests(images.FilterPlatforms(children, r.matcher), r.matcher, 1)
	fetch := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return nil, f.fetch(ctx, desc)
	})
	unpacker, err := unpack.NewUnpacker(ctx, store,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform:       r.matcher,
			SnapshotterKey: r.Snapshotter,
			Snapshotter:    r.client.SnapshotService(r.Snapshotter),
			Applier:        r.client.DiffService(),
		}),
		// Layers whose snapshots outlived them are fetched too: the mirror serves them.
		unpack.WithFetchAllContent())
	if err != nil {
		return err
	}
	handler := unpacker.Unpack(images.Handlers(fetch, children, source))
	if err := images.Dispatch(ctx, handler, nil, target); err != nil {
		cancel()
		_, _ = unpacker.Wait() // for its end; its error is ours or follows from it
		return err
	}
	_, err = unpacker.Wait()
	return err
}

// explain says what the agent is to make of an error: whatever the mirror is to blame
// for is temporary.
func (f *fetcher) explain(ctx context.Context, err error) error {
	var failed *mirror.Error
	switch waiting := f.waiting(); {
	case errors.Is(err, mirror.ErrNoMirror):
		return fmt.Errorf("%w: %w for %s", nodeagent.ErrNotOnMirror, mirror.ErrNoMirror, f.mirrors.Registry)
	case errors.Is(err, errRejected):
		return fmt.Errorf("%w: %w", nodeagent.ErrNotOnMirror, err)
	case waiting != nil && (ctx.Err() != nil || errors.As(err, &failed)):
		return fmt.Errorf("%w: %w", nodeagent.ErrNotOnMirror, waiting)
	default:
		return err
	}
}
