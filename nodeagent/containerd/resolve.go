// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// resolveTimeout is for one question to the registry. It is short, because a node may reach nothing
// but its mirrors.
const resolveTimeout = 10 * time.Second

// resolve asks the registry itself for the digest of a reference, never a mirror: from here or,
// where it cannot be reached from here, through the daemon, which may have another network, proxy
// and trust. Its error wraps one of nodeagent's errors.
func (r *Runtime) resolve(ctx context.Context, hosts *mirror.Hosts, ref imageref.Reference, credential nodeagent.Credential) (digest.Digest, error) {
	found, err := r.resolveFromHere(ctx, hosts, ref)
	if !errors.Is(err, nodeagent.ErrRegistryUnavailable) || ctx.Err() != nil {
		return found, err
	}
	found, daemonErr := r.resolveThroughDaemon(ctx, hosts, ref, credential)
	if daemonErr != nil {
		// What kept the agent from asking is only a part of it now.
		return "", fmt.Errorf("%w; from the agent: %s", daemonErr, err.Error())
	}
	return found, nil
}

// resolveFromHere asks by one HEAD each of the registry's hosts until one answers.
func (r *Runtime) resolveFromHere(ctx context.Context, hosts *mirror.Hosts, ref imageref.Reference) (digest.Digest, error) {
	if len(hosts.Upstreams) == 0 {
		return "", fmt.Errorf("%w: %w", nodeagent.ErrRegistryUnavailable, hosts.Unusable)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts.Upstreams, nil },
		Headers: http.Header{"User-Agent": {r.UserAgent}},
	})
	_, desc, err := resolver.Resolve(ctx, ref.String())
	if err != nil {
		var asked []string
		for _, host := range hosts.Upstreams {
			asked = append(asked, host.Scheme+"://"+host.Host)
		}
		return "", fmt.Errorf("%w: ask %s: %w", classify(err), strings.Join(asked, ", "), err)
	}
	return desc.Digest, nil
}

// askNamespace is the containerd namespace of pulls that only ask, so that what they leave is no
// image of the node.
const askNamespace = "sluice"

// nowhere is a platform for which no image has anything.
var nowhere = ocispec.Platform{OS: "none", Architecture: "none"}

// resolveThroughDaemon has the daemon ask the registry, with a configuration without mirrors. It
// answers no such question by itself: a pull is begun, and ended by the first word of what the
// reference means.
func (r *Runtime) resolveThroughDaemon(ctx context.Context, hosts *mirror.Hosts, ref imageref.Reference, credential nodeagent.Credential) (digest.Digest, error) {
	dir, remove, err := hosts.WriteUpstreams()
	if err != nil {
		return "", err
	}
	defer remove()
	// The lease of the pull, which ctx has, is not there in another namespace.
	asking, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), askNamespace), resolveTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	source, err := origin{ref: ref, hostsDir: dir, credential: credential}.registry(asking)
	if err != nil {
		return "", err
	}
	found := make(chan digest.Digest, 1)
	note := func(p transfer.Progress) {
		if p.Event != resolvedEvent || p.Desc == nil {
			return
		}
		select {
		case found <- p.Desc.Digest:
			cancel()
		default:
		}
	}
	store := image.NewStore(ref.String(), image.WithPlatforms(nowhere))
	err = r.client.Transfer(asking, source, store, transfer.WithProgress(note))
	select {
	case d := <-found:
		if err == nil { // the pull was faster than its end
			return d, r.forget(context.WithoutCancel(asking), ref)
		}
		return d, nil
	default:
	}
	if err == nil {
		err = errors.New("the pull ended without a word of its digest")
	}
	return "", fmt.Errorf("%w: ask through containerd: %w", classifyText(err), err)
}

// forget deletes the record of a pull that was to ask only.
func (r *Runtime) forget(ctx context.Context, ref imageref.Reference) error {
	if err := r.client.ImageService().Delete(ctx, ref.String()); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete image of namespace %q: %w", askNamespace, err)
	}
	return nil
}

// classifyText is classify for an error that has come through an RPC, of which the text is left.
func classifyText(err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "401 Unauthorized"), strings.Contains(text, "403 Forbidden"),
		strings.Contains(text, docker.ErrInvalidAuthorization.Error()):
		return nodeagent.ErrUnauthorized
	case errdefs.IsNotFound(err) && strings.Contains(text, "failed to resolve image"):
		return nodeagent.ErrImageNotFound
	default:
		return nodeagent.ErrRegistryUnavailable
	}
}

// classify returns which of nodeagent's errors a failed answer of the registry is.
func classify(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return nodeagent.ErrUnauthorized
		case http.StatusNotFound:
			return nodeagent.ErrImageNotFound
		}
		return nodeagent.ErrRegistryUnavailable
	}
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return nodeagent.ErrUnauthorized
	case errdefs.IsNotFound(err):
		return nodeagent.ErrImageNotFound
	default:
		return nodeagent.ErrRegistryUnavailable
	}
}

// basicAuth converts a credential into the form that containerd's resolver takes; an identity token
// has no user name. Like the kubelet, it gives the credential to every host that the node's
// configuration names for the registry.
func basicAuth(c nodeagent.Credential) func(string) (string, string, error) {
	if c == (nodeagent.Credential{}) {
		return nil
	}
	return func(string) (string, string, error) {
		if c.IdentityToken != "" {
			return "", c.IdentityToken, nil
		}
		return c.Username, c.Password, nil
	}
}
