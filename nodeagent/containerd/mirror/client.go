// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

var (
	// ErrMiss: a mirror answered, and does not have the content now.
	ErrMiss = errors.New("mirror does not have it")
	// ErrNoMirror: no mirror is configured for the registry.
	ErrNoMirror = errors.New("no mirror is configured")
	// ErrStalled: a mirror went silent in the middle.
	ErrStalled = errors.New("mirror went silent")

	errNoAnswer = errors.New("no answer")
)

// Error is what went wrong with the mirrors: of Get, and of reading what it returned.
type Error struct {
	cause error
	// Unreachable: none of them gave an answer of any kind.
	Unreachable bool
}

func (e *Error) Error() string { return e.cause.Error() }
func (e *Error) Unwrap() error { return e.cause }

// Kind is the part of the distribution API that serves a digest.
type Kind string

const (
	Manifests Kind = "manifests"
	Blobs     Kind = "blobs"
)

// accept is what a manifest may be; blobs are taken as they come.
const accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, */*"

// Client asks the mirrors for the content of one repository.
type Client struct {
	Hosts []docker.RegistryHost
	// Registry is the namespace that goes into the query: "docker.io".
	Registry string
	// Repository is the path within it: "library/nginx".
	Repository string
	UserAgent  string
	Gates      *Gates
	// Patience is how long a mirror may send nothing.
	Patience time.Duration
}

// Content is an answer. Close it.
type Content struct {
	io.ReadCloser
	// Offset is where in the blob it begins: 0, or what was asked for.
	Offset int64
	// MediaType is the Content-Type.
	MediaType string
}

// Rested waits until no mirror's gate rests for the key, so that Get asks at once.
func (c *Client) Rested(ctx context.Context, dgst digest.Digest) error {
	for _, host := range c.Hosts {
		if err := c.Gates.rested(ctx, key(host, dgst)); err != nil {
			return err
		}
	}
	return nil
}

func key(host docker.RegistryHost, dgst digest.Digest) string { return host.Host + " " + dgst.String() }

// Get asks one mirror after the other, beginning at the offset where the mirror can.
// Each key is asked for when its gate opens, so Get may be called again at once. Its
// error is an Error, unless ctx has ended.
func (c *Client) Get(ctx context.Context, kind Kind, dgst digest.Digest, offset int64) (*Content, error) {
	if len(c.Hosts) == 0 {
		return nil, &Error{cause: ErrNoMirror, Unreachable: true}
	}
	var errs []error
	reached := false
	for _, host := range c.Hosts {
		content, err := c.get(ctx, host, kind, dgst, offset)
		if err == nil {
			return content, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		reached = reached || !errors.Is(err, errNoAnswer)
		errs = append(errs, err)
	}
	return nil, &Error{cause: errors.Join(errs...), Unreachable: !reached}
}

func (c *Client) get(ctx context.Context, host docker.RegistryHost, kind Kind, dgst digest.Digest, offset int64) (*Content, error) {
	leave, err := c.Gates.enter(ctx, key(host, dgst))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	patience := time.AfterFunc(c.Patience, func() { cancel(fmt.Errorf("%w for %v", ErrStalled, c.Patience)) })
	end := func(rest time.Duration) {
		patience.Stop()
		cancel(nil)
		leave(rest)
	}

	response, err := c.send(ctx, host, kind, dgst, offset)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		end(c.Gates.AfterError)
		return nil, fmt.Errorf("ask mirror %s for %s: %w: %w", host.Host, dgst, errNoAnswer, err)
	}
	switch response.StatusCode {
	case http.StatusOK:
		offset = 0
	case http.StatusPartialContent:
	case http.StatusNotFound:
		err = ErrMiss
	default:
		err = fmt.Errorf("unexpected status %s", response.Status)
	}
	if err != nil {
		_ = response.Body.Close()
		end(c.Gates.AfterMiss)
		return nil, fmt.Errorf("ask mirror %s for %s: %w", host.Host, dgst, err)
	}
	patience.Stop()
	return &Content{
		ReadCloser: &body{
			ReadCloser: response.Body, host: host.Host, digest: dgst,
			ctx: ctx, timer: patience, patience: c.Patience,
			end: func(complete bool) {
				if complete {
					end(0)
					return
				}
				end(c.Gates.AfterMiss)
			},
		},
		Offset:    offset,
		MediaType: response.Header.Get("Content-Type"),
	}, nil
}

func (c *Client) send(ctx context.Context, host docker.RegistryHost, kind Kind, dgst digest.Digest, offset int64) (*http.Response, error) {
	u := url.URL{
		Scheme:   host.Scheme,
		Host:     host.Host,
		Path:     fmt.Sprintf("%s/%s/%s/%s", host.Path, c.Repository, kind, dgst),
		RawQuery: url.Values{"ns": {c.Registry}}.Encode(),
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, host.Header)
	request.Header.Set("User-Agent", c.UserAgent)
	request.Header.Set("Accept", accept)
	// Nothing in between shall change the bytes that the digest is of.
	request.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	client := *host.Client
	client.CheckRedirect = stayOn(host.Host)
	return client.Do(request)
}

// stayOn refuses redirects that lead off the host: a mirror may send us to the
// registry's own storage.
func stayOn(host string) func(*http.Request, []*http.Request) error {
	return func(request *http.Request, via []*http.Request) error {
		if canonical(request.URL.Host) != canonical(host) {
			return fmt.Errorf("redirect leads off the mirror, to %s", request.URL.Host)
		}
		if len(via) >= 10 {
			return errors.New("too many redirects")
		}
		return nil
	}
}

// body ends when the mirror is silent for too long within one Read; how long the
// reader itself takes does not count.
type body struct {
	io.ReadCloser
	host     string
	digest   digest.Digest
	ctx      context.Context
	timer    *time.Timer
	patience time.Duration
	complete bool
	once     sync.Once
	end      func(complete bool)
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.patience)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if errors.Is(err, io.EOF) {
		b.complete = true
		return n, err
	}
	if err == nil {
		return n, nil
	}
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	return n, &Error{cause: fmt.Errorf("receive %s from mirror %s: %w", b.digest, b.host, err)}
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(func() { b.end(b.complete) })
	return err
}
