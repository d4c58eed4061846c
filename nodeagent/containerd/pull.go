// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

// Pull implements nodeagent.Runtime.
func (r *Runtime) Pull(ctx context.Context, req nodeagent.PullRequest, onProgress func(nodeagent.Progress)) (nodeagent.Result, error) {
	// containerd's packages log the errors that they return, in a format of their own.
	result, err := r.pull(log.WithLogger(ctx, discard), req, onProgress)
	if err != nil {
		return nodeagent.Result{}, r.translate(ctx, fmt.Errorf("pull %s: %w", req.Ref, err))
	}
	return result, nil
}

var discard = func() *log.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return logrus.NewEntry(logger)
}()

func (r *Runtime) pull(ctx context.Context, req nodeagent.PullRequest, onProgress func(nodeagent.Progress)) (nodeagent.Result, error) {
	m := newMeter(onProgress)
	defer m.stop()
	a := r.disk.openAccount(ctx, req, m)
	defer r.disk.close(a)
	target, local, err := r.write(req, a)
	stopped := a.endWatch()
	if err != nil {
		if stopped != nil && ctx.Err() == nil { // by the watch
			err = stopped
		}
		return nodeagent.Result{}, r.settle(ctx, a, err)
	}
	// From here on the image records keep the content, and the lease has no use.
	if err := r.deleteLeases(ctx, req.Ref); err != nil {
		return nodeagent.Result{}, err
	}
	result := nodeagent.Result{Digest: target.Digest, SizeBytes: local.size, PulledBytes: m.pulledBytes(), Source: v1alpha1.SourceLocal}
	if result.PulledBytes > 0 {
		result.Source = v1alpha1.SourceMirror
		if req.Policy == v1alpha1.RegistryPolicyDefault {
			result.Source = v1alpha1.SourceUpstream
		}
	}
	return result, nil
}

// write does all of a pull that writes to the disk. A lease keeps what it writes.
func (r *Runtime) write(req nodeagent.PullRequest, a *account) (target ocispec.Descriptor, local localContent, err error) {
	ctx, err := r.ensureLease(a.ctx, req.Ref)
	if err != nil {
		return target, local, err
	}
	id, _ := leases.FromContext(ctx)
	r.disk.setLease(a, id)
	switch req.Policy {
	case v1alpha1.RegistryPolicyMirror:
		target, err = r.pullAsPeer(ctx, req, a)
	case v1alpha1.RegistryPolicyLocal:
		target, err = r.findNamed(ctx, req, a.meter)
	default:
		target, err = r.pullAsSeed(ctx, req, a)
	}
	if err == nil {
		local, err = r.finish(ctx, req, target, a)
	}
	return target, local, err
}

// findNamed finds what the image's name means on the node, and all of its content.
func (r *Runtime) findNamed(ctx context.Context, req nodeagent.PullRequest, m *meter) (ocispec.Descriptor, error) {
	record, err := r.client.ImageService().Get(ctx, req.Ref.String())
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fmt.Errorf("%w: it has no image of this name: import it there", nodeagent.ErrImageNotOnNode)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target, complete, err := r.findComplete(ctx, record.Target.Digest, m)
	if err == nil && !complete {
		err = fmt.Errorf("%w: content of %s is missing: import it there again", nodeagent.ErrImageNotOnNode, record.Target.Digest)
	}
	if err == nil {
		m.setDigest(record.Target.Digest)
	}
	return target, err
}

// finish checks that the content is complete, unpacks it if it is still packed, announces it to the
// mirror, and records the image's names.
func (r *Runtime) finish(ctx context.Context, req nodeagent.PullRequest, target ocispec.Descriptor, a *account) (localContent, error) {
	local, err := r.inspect(ctx, target)
	if err != nil {
		return localContent{}, err
	}
	if local.manifest == nil {
		return localContent{}, fmt.Errorf("%w: %s has nothing for %s", nodeagent.ErrPlatformNotProvided, target.Digest, platformName(r.platform))
	}
	if local.missing > 0 {
		return localContent{}, errors.New("content is missing after the pull")
	}
	if !local.unpacked {
		if err := r.reserveDisk(ctx, a, target.Digest, expect(local)); err != nil {
			return localContent{}, err
		}
		if err := r.unpack(ctx, target); err != nil {
			return localContent{}, err
		}
	}
	if req.Policy == v1alpha1.RegistryPolicyLocal { // to unpack may have taken long
		record, err := r.client.ImageService().Get(ctx, req.Ref.String())
		if err != nil {
			return localContent{}, err
		}
		if record.Target.Digest != target.Digest {
			return localContent{}, fmt.Errorf("%w: another image was imported meanwhile", nodeagent.ErrImageNotOnNode)
		}
	}
	if err := r.announce(ctx, req.Ref, target); err != nil {
		return localContent{}, err
	}
	return local, r.recordNames(ctx, req.Ref, target, local.manifest.Config, req.Pinned)
}

// unpack unpacks content that was there before the pull, or that a transfer service without a
// configuration for the snapshotter has left packed.
func (r *Runtime) unpack(ctx context.Context, target ocispec.Descriptor) error {
	daemon, err := r.daemon(ctx)
	if err != nil {
		return err
	}
	image := client.NewImageWithPlatform(r.client, images.Image{Name: target.Digest.String(), Target: target}, r.matcher)
	if err := image.Unpack(ctx, daemon.snapshotter); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

func platformName(p ocispec.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}
