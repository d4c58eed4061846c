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
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

// Pull implements nodeagent.Runtime.
func (r *Runtime) Pull(ctx context.Context, req nodeagent.PullRequest, report func(nodeagent.Progress)) (nodeagent.Result, error) {
	// containerd's packages log what they also return, and in a format of their own.
	result, err := r.pull(log.WithLogger(ctx, discard), req, report)
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

func (r *Runtime) pull(ctx context.Context, req nodeagent.PullRequest, report func(nodeagent.Progress)) (nodeagent.Result, error) {
	leased, err := r.lease(ctx, req.Ref)
	if err != nil {
		return nodeagent.Result{}, err
	}
	m := newMeter(report)
	defer m.stop()

	var target ocispec.Descriptor
	if req.Policy == v1alpha1.RegistryPolicyMirror {
		target, err = r.follow(leased, req, m)
	} else {
		target, err = r.seed(leased, req, m)
	}
	if err != nil {
		return nodeagent.Result{}, err
	}
	held, err := r.finish(leased, req, target)
	if err != nil {
		return nodeagent.Result{}, err
	}
	// From here on the records hold the content.
	if err := r.releaseImage(ctx, req.Ref); err != nil {
		return nodeagent.Result{}, err
	}
	result := nodeagent.Result{Digest: target.Digest, SizeBytes: held.size, PulledBytes: m.pulled(), Source: v1alpha1.SourceLocal}
	if result.PulledBytes > 0 {
		result.Source = v1alpha1.SourceMirror
		if req.Policy == v1alpha1.RegistryPolicyDefault {
			result.Source = v1alpha1.SourceUpstream
		}
	}
	return result, nil
}

// finish unpacks where that has not been done, names the image, and looks at the
// outcome rather than believe it.
func (r *Runtime) finish(ctx context.Context, req nodeagent.PullRequest, target ocispec.Descriptor) (holding, error) {
	held, err := r.inspect(ctx, target)
	if err != nil {
		return holding{}, err
	}
	if held.manifest == nil {
		return holding{}, fmt.Errorf("%w: %s has nothing for %s", nodeagent.ErrPlatformNotProvided, target.Digest, platformName(r.platform))
	}
	if held.missing > 0 {
		return holding{}, errors.New("content is missing after the pull")
	}
	if !held.unpacked {
		if err := r.unpack(ctx, target); err != nil {
			return holding{}, err
		}
	}
	return held, r.name(ctx, req.Ref, target, held.manifest.Config, req.Pinned)
}

// unpack is for content that was there before, packed, and for a transfer service
// that is not set up for the snapshotter.
func (r *Runtime) unpack(ctx context.Context, target ocispec.Descriptor) error {
	image := client.NewImageWithPlatform(r.client, images.Image{Name: target.Digest.String(), Target: target}, r.matcher)
	if err := image.Unpack(ctx, r.Snapshotter); err != nil {
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
