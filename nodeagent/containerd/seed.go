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

// seed has the daemon pull as it would for the kubelet: from the mirrors as far as
// they have something, else from the registry. Credentials are tried one after the
// other, whatever the registry has against those before, as the kubelet does: an account
// may be over its limit, too.
func (r *Runtime) seed(ctx context.Context, req nodeagent.PullRequest, m *meter) (ocispec.Descriptor, error) {
	credentials := req.Credentials
	if len(credentials) == 0 {
		credentials = []nodeagent.Credential{{}}
	}
	var refused, failed []error
	for _, credential := range credentials {
		target, err := r.seedWith(ctx, req, credential, m)
		switch {
		case err == nil:
			return target, nil
		case ctx.Err() != nil, errors.Is(err, nodeagent.ErrInsufficientDisk), errors.Is(err, nodeagent.ErrRuntimeUnavailable):
			return ocispec.Descriptor{}, err // no credential can help
		case errors.Is(err, nodeagent.ErrUnauthorized), errors.Is(err, nodeagent.ErrImageNotFound):
			// Registries answer 404, too, to an account that may not see a repository.
			refused = append(refused, err)
		default:
			failed = append(failed, err)
		}
	}
	if len(failed) == 0 {
		return ocispec.Descriptor{}, errors.Join(refused...)
	}
	if len(refused) == 0 {
		return ocispec.Descriptor{}, errors.Join(failed...)
	}
	// The refusals are not final while another credential may be accepted later.
	return ocispec.Descriptor{}, fmt.Errorf("%w; other credentials: %s", errors.Join(failed...), errors.Join(refused...).Error())
}

func (r *Runtime) seedWith(ctx context.Context, req nodeagent.PullRequest, credential nodeagent.Credential, m *meter) (ocispec.Descriptor, error) {
	hosts, err := mirror.ReadHosts(ctx, r.RegistryConfigPath, req.Ref.Domain(), basicAuth(credential))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer hosts.Close()
	want, asked := req.Digest, error(nil)
	if want == "" && hosts.MirrorMayResolve() {
		// A mirror would answer with what some node holds. Where the registry cannot be
		// asked from here, that is still what the kubelet would get.
		if want, asked = r.ask(ctx, hosts, req.Ref.String()); asked != nil {
			r.Log.V(1).Info("Asking the registry failed; leaving it to containerd", "image", req.Ref.String(), "error", nodeagent.Redact(asked, req.Credentials).Error())
		}
	}
	if want != "" {
		m.resolved(want)
		if target, ok, err := r.complete(ctx, want, m); ok || err != nil {
			return target, err
		}
	}
	target, err := r.transfer(ctx, req, want, credential, m)
	if err != nil {
		return ocispec.Descriptor{}, r.diagnose(ctx, hosts, req, asked, err)
	}
	return target, nil
}

// complete finds content that needs no pull, only names, and perhaps unpacking.
func (r *Runtime) complete(ctx context.Context, want digest.Digest, m *meter) (ocispec.Descriptor, bool, error) {
	target, known, err := r.locate(ctx, want)
	if err != nil || !known {
		return ocispec.Descriptor{}, false, err
	}
	held, err := r.inspect(ctx, target)
	if err != nil || held.manifest == nil || held.missing > 0 {
		return ocispec.Descriptor{}, false, err
	}
	m.sized(held.size)
	return target, true, nil
}

// diagnose finds out what a failed transfer means. Its error has come through an RPC
// that kept little but its text, and containerd reports a mirror's 404 rather than the
// registry's silence, which would make an outage look final. So the registry is asked
// again, from here: asked is its answer if it has just been.
func (r *Runtime) diagnose(ctx context.Context, hosts mirror.Hosts, req nodeagent.PullRequest, asked, err error) error {
	if ctx.Err() != nil || errors.Is(err, nodeagent.ErrInsufficientDisk) {
		return err
	}
	if down := r.supported(ctx); down != nil {
		return fmt.Errorf("%w: %w", down, err)
	}
	if asked == nil {
		ref := req.Ref.String()
		if req.Digest != "" {
			ref = req.Ref.WithDigest(req.Digest).String()
		}
		_, asked = r.ask(ctx, hosts, ref)
	}
	if asked == nil {
		return err // it is something else than the registry's answer to this image
	}
	return fmt.Errorf("%w: %w", asked, err)
}
