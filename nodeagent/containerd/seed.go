// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// pullAsSeed has the daemon pull as it does for the kubelet: from the mirrors what they have, and
// from the registry the rest. Like the kubelet it tries the credentials one after the other, after
// errors of every kind: an account may also be over its rate limit.
func (r *Runtime) pullAsSeed(ctx context.Context, req nodeagent.PullRequest, m *meter) (ocispec.Descriptor, error) {
	credentials := req.Credentials
	if len(credentials) == 0 {
		credentials = []nodeagent.Credential{{}}
	}
	var refusals, failures []error
	for _, credential := range credentials {
		target, err := r.pullWithCredential(ctx, req, credential, m)
		switch {
		case err == nil:
			return target, nil
		case ctx.Err() != nil, errors.Is(err, nodeagent.ErrInsufficientDisk), errors.Is(err, nodeagent.ErrRuntimeUnavailable):
			return ocispec.Descriptor{}, err // no credential can help
		case errors.Is(err, nodeagent.ErrUnauthorized), errors.Is(err, nodeagent.ErrImageNotFound):
			// Some registries answer 404 to an account that may not see the repository.
			refusals = append(refusals, err)
		default:
			failures = append(failures, err)
		}
	}
	if len(failures) == 0 {
		return ocispec.Descriptor{}, errors.Join(refusals...)
	}
	if len(refusals) == 0 {
		return ocispec.Descriptor{}, errors.Join(failures...)
	}
	// A refusal is final, but another credential may still be accepted later. So the refusals go
	// into the text alone.
	return ocispec.Descriptor{}, fmt.Errorf("%w; other credentials: %s", errors.Join(failures...), errors.Join(refusals...).Error())
}

func (r *Runtime) pullWithCredential(ctx context.Context, req nodeagent.PullRequest, credential nodeagent.Credential, m *meter) (ocispec.Descriptor, error) {
	hosts, err := mirror.ReadHosts(ctx, r.RegistryConfigPath, req.Ref.Domain(), basicAuth(credential))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer hosts.Close()
	want, resolveErr := req.Digest, error(nil)
	if want == "" && hosts.MirrorMayResolve() {
		// The daemon would ask a mirror, which answers with what some node has. So the registry is
		// asked from here. If it does not answer, the mirror's word is what the kubelet would get.
		if want, resolveErr = r.resolveUpstream(ctx, hosts, req.Ref.String()); resolveErr != nil {
			r.Log.V(1).Info("Left the tag to containerd, because the registry gave no digest", "image", req.Ref.String(), "error", nodeagent.Redact(resolveErr, req.Credentials).Error())
		}
	}
	if want != "" {
		m.setDigest(want)
		if target, ok, err := r.findComplete(ctx, want, m); ok || err != nil {
			return target, err
		}
	}
	target, err := r.transfer(ctx, req, want, credential, m)
	if err != nil {
		return ocispec.Descriptor{}, r.diagnose(ctx, hosts, req, resolveErr, err)
	}
	return target, nil
}

// findComplete returns the descriptor of content that is all there, and whether it is. Such an
// image needs no pull, only names and perhaps unpacking.
func (r *Runtime) findComplete(ctx context.Context, want digest.Digest, m *meter) (ocispec.Descriptor, bool, error) {
	target, known, err := r.describe(ctx, want)
	if err != nil || !known {
		return ocispec.Descriptor{}, false, err
	}
	local, err := r.inspect(ctx, target)
	if err != nil || local.manifest == nil || local.missing > 0 {
		return ocispec.Descriptor{}, false, err
	}
	m.setSize(local.size)
	return target, true, nil
}

// diagnose finds out which of nodeagent's errors a failed transfer is. The error itself does not
// tell: it has come through an RPC, and containerd returns a mirror's 404 even where the registry
// is away, which would make an outage look final. So the registry is asked from here. resolveErr is
// its answer if it has been asked already.
func (r *Runtime) diagnose(ctx context.Context, hosts mirror.Hosts, req nodeagent.PullRequest, resolveErr, err error) error {
	if ctx.Err() != nil || errors.Is(err, nodeagent.ErrInsufficientDisk) {
		return err
	}
	if down := r.checkVersion(ctx); down != nil {
		return fmt.Errorf("%w: %w", down, err)
	}
	if resolveErr == nil {
		ref := req.Ref.String()
		if req.Digest != "" {
			ref = req.Ref.WithDigest(req.Digest).String()
		}
		_, resolveErr = r.resolveUpstream(ctx, hosts, ref)
	}
	if resolveErr == nil {
		return err // the registry has no objection to this image: the cause is another one
	}
	return fmt.Errorf("%w: %w", resolveErr, err)
}
