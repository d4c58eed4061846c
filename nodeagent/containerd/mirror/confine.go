// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// confine returns a mirror that leads to no other host than itself and the RedirectHosts, be it by a
// redirect or for a token, and never to the registry: a peer brings nothing in. It is asked without
// credentials, and with a token if it gives one to everybody.
func (h *Hosts) confine(mirror docker.RegistryHost) docker.RegistryHost {
	client := *mirror.Client
	client.Transport = &confinedTransport{RoundTripper: client.Transport, allows: func(host string) bool {
		if canonical(host) == canonical(mirror.Host) {
			return true
		}
		return !h.isUpstream(host) && slices.ContainsFunc(h.config.RedirectHosts, func(allowed string) bool {
			return canonical(allowed) == canonical(host)
		})
	}}
	mirror.Client = &client
	mirror.Authorizer = docker.NewDockerAuthorizer(docker.WithAuthClient(&client))
	return mirror
}

// confinedTransport lets through requests to some hosts only.
type confinedTransport struct {
	http.RoundTripper
	allows func(host string) bool
}

func (c *confinedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	if !c.allows(request.URL.Host) {
		return nil, fmt.Errorf("it leads off the mirror, to %s: if that is its storage, or gives out its tokens, name it in --mirror-redirect-hosts",
			request.URL.Host)
	}
	return c.RoundTripper.RoundTrip(request)
}

// CloseIdleConnections is what an http.Client looks for in its transport.
func (c *confinedTransport) CloseIdleConnections() {
	if transport, ok := c.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		transport.CloseIdleConnections()
	}
}
