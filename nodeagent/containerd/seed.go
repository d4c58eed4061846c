// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// pullAsSeed has the daemon pull as it does for the kubelet: from the mirrors what they have, and
// from the registry the rest. Like the kubelet it tries the credentials one after the other, after
// errors of every kind: an account may also be over its rate limit.
func (r *Runtime) pullAsSeed(ctx context.Context, req nodeagent.PullRequest, a *account) (ocispec.Descriptor, error) {
	credentials := req.Credentials
	if len(credentials) == 0 {
		credentials = []nodeagent.Credential{{}}
	}
	var refusals, failures []error
	for _, credential := range credentials {
		target, err := r.pullWithCredential(ctx, req, credential, a)
		switch {
		case err == nil:
			return target, nil
		case ctx.Err() != nil, isFinal(err), errors.Is(err, nodeagent.ErrRuntimeUnavailable):
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

func (r *Runtime) pullWithCredential(ctx context.Context, req nodeagent.PullRequest, credential nodeagent.Credential, a *account) (ocispec.Descriptor, error) {
	hosts, err := r.readHosts(ctx, req, basicAuth(credential))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer hosts.Close()
	want := req.Digest
	if want == "" && hosts.MirrorMayResolve() {
		// The daemon would ask a mirror, which answers with what some node has.
		if want, err = r.resolve(ctx, hosts, req.Ref, credential); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if want != "" {
		a.meter.setDigest(want)
		r.disk.identify(a, want)
		if target, ok, err := r.findComplete(ctx, want, a.meter); ok || err != nil {
			return target, err
		}
		if err := r.reserveKnown(ctx, a, want); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	from := origin{ref: req.Ref, hostsDir: hosts.Root(), credential: credential}
	if want != "" {
		from.ref = req.Ref.WithDigest(want)
	}
	if req.Digest != "" { // another node may have it: what a tag means is new
		r.fetchRootFirst(ctx, hosts, req, a.meter)
	}
	target, err := r.transferPastMirrors(ctx, hosts, req, from, a)
	if err != nil {
		return ocispec.Descriptor{}, r.diagnose(ctx, hosts, req, credential, err)
	}
	return target, nil
}

// rootTimeout is longer than a mirror takes that has the manifest. One without it looks around for
// seconds.
const rootTimeout = 300 * time.Millisecond

// fetchRootFirst fetches the manifest or index from a mirror, if one has it, before the daemon asks for
// it by a HEAD and then a GET: of two requests within seconds Spegel often misses the second, so that a
// seed that takes over from another would get the manifest from the registry again.
func (r *Runtime) fetchRootFirst(ctx context.Context, hosts *mirror.Hosts, req nodeagent.PullRequest, m *meter) {
	if _, known, err := r.describe(ctx, req.Digest); known || err != nil || len(hosts.Mirrors) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, rootTimeout)
	defer cancel()
	if _, err := r.newFetcher(hosts, req, m).tryRoot(ctx, req.Digest); err != nil {
		r.Log.V(2).Info("Left the manifest to containerd", "image", req.Ref.String(), "error", err.Error())
	}
}

// transferPastMirrors is transfer without mirrors that answer nothing: the daemon would wait for those
// anew for each blob. But it may reach what the agent does not. So if nothing comes without them, it
// tries with them.
func (r *Runtime) transferPastMirrors(ctx context.Context, hosts *mirror.Hosts, req nodeagent.PullRequest, from origin, a *account) (ocispec.Descriptor, error) {
	before := a.meter.pulledBytes()
	defer func() {
		if errors.Is(context.Cause(ctx), nodeagent.ErrNoProgress) && a.meter.pulledBytes() == before {
			r.stuck.note(req.Ref.Domain()) // perhaps a mirror hangs as soon as it is asked for content
		}
	}()
	if silent := r.silentMirrors(ctx, hosts, req, from); len(silent) > 0 {
		dir, remove, err := hosts.WriteWithout(silent)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		defer remove()
		r.Log.Info("Left out mirrors that answer nothing", "image", req.Ref.String(), "mirrors", hostNames(silent))
		without := from
		without.hostsDir = dir
		limited, cancel := context.WithCancel(ctx)
		defer cancel()
		defer time.AfterFunc(firstByteTimeout, func() {
			if a.meter.pulledBytes() == before {
				cancel()
			}
		}).Stop()
		target, err := r.transfer(limited, req, without, a)
		if err == nil || ctx.Err() != nil || a.meter.pulledBytes() > before || isFinal(err) {
			return target, err
		}
	}
	return r.transfer(ctx, req, from, a)
}

// firstByteTimeout is how long a transfer without the mirrors that answer nothing may receive nothing
// itself: it may be the registry that cannot be reached. It is shorter than NoProgressTimeout.
const firstByteTimeout = 20 * time.Second

// silentMirrors are the mirrors that a seed does without. After a transfer that received nothing they
// are asked for the image itself: one may answer, and hang as soon as it is to look for something.
func (r *Runtime) silentMirrors(ctx context.Context, hosts *mirror.Hosts, req nodeagent.PullRequest, from origin) []docker.RegistryHost {
	client := r.mirrorClient(hosts, req)
	if !r.stuck.lately(req.Ref.Domain()) {
		return client.Silent(ctx)
	}
	reference := from.ref.Tag()
	if d := from.ref.Digest(); d != "" {
		reference = d.String()
	}
	return client.SilentAbout(ctx, reference)
}

// isFinal reports whether another try cannot help, wherever the content comes from.
func isFinal(err error) bool {
	return errors.Is(err, nodeagent.ErrInsufficientDisk) || errors.Is(err, nodeagent.ErrImageInvalid)
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
// is away, which would make an outage look final. So the registry is asked by itself.
func (r *Runtime) diagnose(ctx context.Context, hosts *mirror.Hosts, req nodeagent.PullRequest, credential nodeagent.Credential, err error) error {
	if ctx.Err() != nil || isFinal(err) {
		return err
	}
	if down := r.checkVersion(ctx); down != nil {
		return fmt.Errorf("%w: %w", down, err)
	}
	ref := req.Ref
	if req.Digest != "" {
		ref = ref.WithDigest(req.Digest)
	}
	_, resolveErr := r.resolve(ctx, hosts, ref, credential)
	if resolveErr == nil {
		return err // the registry has no objection to this image: the cause is another one
	}
	return fmt.Errorf("%w: %w", resolveErr, err)
}
