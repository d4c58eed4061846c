// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// askTimeout bounds one question to the registry. A node may have no way out but
// through its mirrors.
const askTimeout = 10 * time.Second

// ask sends the registry itself one HEAD. Its error wraps what the answer means.
func (r *Runtime) ask(ctx context.Context, hosts mirror.Hosts, ref string) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{hosts.Upstream}, nil },
		Headers: http.Header{"User-Agent": {r.UserAgent}},
	})
	_, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return "", fmt.Errorf("%w: ask %s: %w", meaning(err), hosts.Upstream.Host, err)
	}
	return desc.Digest, nil
}

// meaning is what a registry's answer means for the image.
func meaning(err error) error {
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

// basicAuth is a credential in the form that containerd's resolver takes: an identity
// token goes without a user name. Like the kubelet's, it is for any host that the
// node's configuration names for the registry.
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
