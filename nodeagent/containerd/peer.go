// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

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

// pullAsPeer fetches the content from the mirrors, each blob as soon as they have it, and unpacks
// each layer as soon as it is there.
func (r *Runtime) pullAsPeer(ctx context.Context, req nodeagent.PullRequest, a *account) (ocispec.Descriptor, error) {
	a.meter.setDigest(req.Digest)
	if target, ok, err := r.findComplete(ctx, req.Digest, a.meter); ok || err != nil {
		return target, err
	}
	if err := r.reserveKnown(ctx, a, req.Digest); err != nil {
		return ocispec.Descriptor{}, err
	}
	hosts, err := r.waitForMirror(ctx, req)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer hosts.Close()
	if len(hosts.Mirrors) == 0 && hosts.Unusable != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: no mirror for %s can be used from the agent: %w", nodeagent.ErrNotOnMirror, req.Ref.Domain(), hosts.Unusable)
	}
	f := r.newFetcher(hosts, req, a.meter)
	target, known, err := r.describe(ctx, req.Digest)
	if err == nil && !known {
		target, err = f.fetchRoot(ctx, req.Digest)
	}
	var manifest *ocispec.Manifest
	if err == nil {
		manifest, err = r.fetchManifests(ctx, target, f, a)
	}
	if err == nil {
		err = r.fetchContent(ctx, req, target, manifest, f)
	}
	if err != nil {
		return ocispec.Descriptor{}, f.explain(ctx, err)
	}
	return target, nil
}

func (r *Runtime) newFetcher(hosts *mirror.Hosts, req nodeagent.PullRequest, m *meter) *fetcher {
	return &fetcher{
		store:       r.store(),
		sourceLabel: content.WithLabels(sourceLabel(req.Ref)),
		streams:     r.streams,
		meter:       m,
		mirrors:     r.mirrorClient(hosts, req),
	}
}

// waitForMirror reads the hosts of an image's registry. On a node that has just joined, hosts.toml may
// come later than the agent: Spegel writes it.
func (r *Runtime) waitForMirror(ctx context.Context, req nodeagent.PullRequest) (*mirror.Hosts, error) {
	for {
		hosts, err := r.readHosts(ctx, req, nil)
		if err != nil || len(hosts.Mirrors) > 0 || !r.throttle.Young() {
			return hosts, err
		}
		hosts.Close()
		if err := sleep(ctx, hostsInterval); err != nil {
			return nil, fmt.Errorf("%w: %w for %s", nodeagent.ErrNotOnMirror, mirror.ErrNoMirror, req.Ref.Domain())
		}
	}
}

// hostsInterval is the time between two looks for a hosts.toml that may come.
const hostsInterval = time.Second

// sourceLabel is the label for the repository that content comes from, as containerd's own pulls
// write it: without the registry's port.
func sourceLabel(ref imageref.Reference) map[string]string {
	registry := url.URL{Host: ref.Domain()}
	return map[string]string{labels.LabelDistributionSource + "." + registry.Hostname(): ref.Path()}
}

// fetchManifests fetches the manifests, which tell the size of the image, and reserves the space on
// the disk. It returns the manifest for the node's platform.
func (r *Runtime) fetchManifests(ctx context.Context, target ocispec.Descriptor, f *fetcher, a *account) (*ocispec.Manifest, error) {
	store := r.store()
	children := r.forPlatform(images.ChildrenHandler(store))
	for desc := target; images.IsIndexType(desc.MediaType); {
		manifests, err := children(ctx, desc)
		if err != nil {
			if errdefs.IsNotFound(err) {
				return nil, fmt.Errorf("%w: %s has nothing for %s", nodeagent.ErrPlatformNotProvided, desc.Digest, platformName(r.platform))
			}
			return nil, err
		}
		desc = manifests[0]
		if err := f.fetch(ctx, desc); err != nil {
			return nil, err
		}
	}
	local, err := r.inspect(ctx, target)
	if err != nil {
		return nil, err
	}
	a.meter.setSize(local.size)
	return local.manifest, r.reserveDisk(ctx, a, target.Digest, expect(local))
}

// fetchContent walks down from the target as containerd's own pulls do. It unpacks each layer as soon
// as it is there, unless the config is of a type from which containerd's unpacker does not begin.
func (r *Runtime) fetchContent(ctx context.Context, req nodeagent.PullRequest, target ocispec.Descriptor, manifest *ocispec.Manifest, f *fetcher) error {
	store := r.store()
	source, err := docker.AppendDistributionSourceLabel(store, req.Ref.String())
	if err != nil {
		return err
	}
	// These labels keep the children from garbage collection for as long as their parent is there.
	children := images.SetChildrenMappedLabels(store, images.ChildrenHandler(store), nil)
	children = r.forPlatform(children)
	fetch := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return nil, f.fetch(ctx, desc)
	})
	handler := images.Handlers(fetch, children, source)
	if manifest == nil || !images.IsConfigType(manifest.Config.MediaType) {
		return images.Dispatch(ctx, handler, nil, target)
	}
	daemon, err := r.daemon(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unpacker, err := unpack.NewUnpacker(ctx, store,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform:       r.matcher,
			SnapshotterKey: daemon.snapshotter,
			Snapshotter:    r.client.SnapshotService(daemon.snapshotter),
			Applier:        r.client.DiffService(),
		}),
		// A layer whose snapshot is still there is fetched too: the mirror serves layers.
		unpack.WithFetchAllContent())
	if err != nil {
		return err
	}
	if err := images.Dispatch(ctx, unpacker.Unpack(handler), nil, target); err != nil {
		cancel()
		_, _ = unpacker.Wait() // its error is err, or follows from the cancellation
		return err
	}
	_, err = unpacker.Wait()
	return err
}

// explain wraps an error that is the mirrors' in ErrNotOnMirror, which is temporary.
func (f *fetcher) explain(ctx context.Context, err error) error {
	var failed *mirror.Error
	switch pending := f.pendingError(); {
	case errors.Is(err, mirror.ErrNoMirror):
		return fmt.Errorf("%w: %w for %s", nodeagent.ErrNotOnMirror, mirror.ErrNoMirror, f.mirrors.Registry)
	case errors.Is(err, errCorrupt):
		return fmt.Errorf("%w: %w", nodeagent.ErrNotOnMirror, err)
	case pending != nil && (ctx.Err() != nil || errors.As(err, &failed)):
		return fmt.Errorf("%w: %w", nodeagent.ErrNotOnMirror, pending)
	default:
		return err
	}
}
