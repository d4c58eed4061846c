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
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// resolveTimeout is for one question to the registry. It is short, because a node may reach nothing
// but its mirrors.
const resolveTimeout = 10 * time.Second

// resolveUpstream asks the registry itself, by one HEAD, for the digest of a reference: each of its
// hosts until one answers. Its error wraps one of nodeagent's errors.
func (r *Runtime) resolveUpstream(ctx context.Context, hosts mirror.Hosts, ref string) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts.Upstreams, nil },
		Headers: http.Header{"User-Agent": {r.UserAgent}},
	})
	_, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		var asked []string
		for _, host := range hosts.Upstreams {
			asked = append(asked, host.Scheme+"://"+host.Host)
		}
		return "", fmt.Errorf("%w: ask %s: %w", classify(err), strings.Join(asked, ", "), err)
	}
	return desc.Digest, nil
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
