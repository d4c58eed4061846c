// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// confine returns a mirror that leads to no other host than itself and the RedirectHosts, be it by a
// redirect or for a token, and never to the registry: a peer brings nothing in. It is asked without
// credentials, and with a token if it gives one to everybody.
func (h *Hosts) confine(mirror docker.RegistryHost) docker.RegistryHost {
	client := *mirror.Client
	client.Transport = &confinedTransport{RoundTripper: client.Transport, mirror: mirror, allows: func(host string) bool {
		return !h.isUpstream(host) && slices.ContainsFunc(h.config.RedirectHosts, func(allowed string) bool {
			return canonical(allowed) == canonical(host)
		})
	}}
	mirror.Client = &client
	mirror.Authorizer = &anonymous{client: &client}
	return mirror
}

// confinedTransport lets through requests to the mirror and to some hosts only.
type confinedTransport struct {
	http.RoundTripper
	mirror docker.RegistryHost
	allows func(host string) bool
}

func (c *confinedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Host == c.mirror.Host && request.URL.Scheme == c.mirror.Scheme {
		return c.RoundTripper.RoundTrip(request)
	}
	if canonical(request.URL.Host) != canonical(c.mirror.Host) && !c.allows(request.URL.Host) {
		return nil, fmt.Errorf("it leads off the mirror, to %s: if that is its storage, or gives out its tokens, name it in --mirror-redirect-hosts",
			request.URL.Host)
	}
	if c.mirror.Scheme == "https" && request.URL.Scheme != "https" {
		return nil, fmt.Errorf("it leads from HTTPS to %s://%s", request.URL.Scheme, request.URL.Host)
	}
	// What the mirror is told is not for others, who may also reject it: a signed URL of a storage
	// admits no token beside it. net/http leaves it in for another port of the same host.
	request = request.Clone(request.Context())
	request.Header.Del("Authorization")
	for name := range c.mirror.Header {
		request.Header.Del(name)
	}
	return c.RoundTripper.RoundTrip(request)
}

// CloseIdleConnections is what an http.Client looks for in its transport.
func (c *confinedTransport) CloseIdleConnections() {
	if transport, ok := c.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		transport.CloseIdleConnections()
	}
}

// anonymous gets the tokens that are given to everybody, and another one when a mirror takes none any
// more: containerd's authorizer keeps a token for ever that does not say when it ends.
type anonymous struct {
	client *http.Client

	mu      sync.Mutex
	current docker.Authorizer // nil until a mirror has asked for a token
}

// Authorize implements docker.Authorizer.
func (a *anonymous) Authorize(ctx context.Context, request *http.Request) error {
	a.mu.Lock()
	current := a.current
	a.mu.Unlock()
	if current == nil {
		return nil
	}
	return current.Authorize(ctx, request)
}

// AddResponses implements docker.Authorizer.
func (a *anonymous) AddResponses(ctx context.Context, responses []*http.Response) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil || len(responses) == 1 {
		a.current = docker.NewDockerAuthorizer(docker.WithAuthClient(a.client))
	}
	return a.current.AddResponses(ctx, responses)
}
