// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// ErrStarting: nobody listens at the address of a mirror that may just not be up yet.
var ErrStarting = errors.New("the mirror may be starting")

// Reach asks each mirror which API it speaks. It returns why there was no answer, in the order of Hosts:
// nil for one that has answered, whatever it said.
func (c *Client) Reach(ctx context.Context) []error {
	errs := make([]error, len(c.Hosts))
	var asking sync.WaitGroup
	for i, host := range c.Hosts {
		asking.Go(func() { errs[i] = c.reach(ctx, host) })
	}
	asking.Wait()
	return errs
}

func (c *Client) reach(ctx context.Context, host docker.RegistryHost) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errSilent)
	defer cancel()
	response, err := c.send(ctx, host, "/", http.Header{})
	switch {
	case err == nil:
		return response.Body.Close()
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case isDialError(err) && c.Throttle.mayBeStarting(host.Host):
		return ErrStarting
	default:
		return lasting(err)
	}
}

// lasting leaves of an error what is the same the next time: not the ports of a connection, not the time.
func lasting(err error) error {
	var lookup *net.DNSError
	var connection *net.OpError
	var certificate x509.CertificateInvalidError
	var request *url.Error
	switch {
	case errors.As(err, &lookup):
		return fmt.Errorf("%s cannot be looked up", lookup.Name)
	case errors.As(err, &certificate) && certificate.Reason == x509.Expired:
		return errors.New("its certificate is not valid any more, or not yet")
	case errors.As(err, &connection):
		return connection.Err
	case errors.As(err, &request):
		return request.Err
	default:
		return err
	}
}
