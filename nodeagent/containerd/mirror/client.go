// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

var (
	// ErrMiss: a mirror answered that it does not have the content now.
	ErrMiss = errors.New("mirror does not have it")
	// ErrRefused: a mirror does not serve this client, whatever it asks for.
	ErrRefused = errors.New("mirror refuses")
	// ErrNoMirror: no mirror is configured for the registry.
	ErrNoMirror = errors.New("no mirror is configured")
	// ErrStalled: a mirror sent nothing for SilenceTimeout.
	ErrStalled = errors.New("mirror went silent")

	errNoAnswer = errors.New("no answer")
	errSilent   = errors.New("it answers nothing at all")
)

// Error is a failure of the mirrors, in Get or in reading the Content that it returned.
type Error struct {
	cause error
	// Useless reports whether each mirror refused or gave no answer at all.
	Useless bool
	// Starting reports whether one of the mirrors may just not be up yet.
	Starting bool
	// Silent reports whether all mirrors were asked in vain for the AnswerTimeout.
	Silent bool
}

func (e *Error) Error() string { return e.cause.Error() }
func (e *Error) Unwrap() error { return e.cause }

// Kind is the part of the distribution API that serves a digest.
type Kind string

const (
	Manifests Kind = "manifests"
	Blobs     Kind = "blobs"
)

// accept lists the types of manifests. It is sent for blobs too, whose type does not matter.
const accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, */*"

// Client asks the mirrors for the content of one repository.
type Client struct {
	Hosts []docker.RegistryHost
	// Registry is the value of the query parameter "ns", such as "docker.io".
	Registry string
	// Repository is the path within the registry, such as "library/nginx".
	Repository string
	UserAgent  string
	Throttle   *Throttle
	// AnswerTimeout is how long a mirror may answer nothing at all, or pause within a body. Then it is
	// not asked for a while, or asked last, if there is another one.
	AnswerTimeout time.Duration
	// SilenceTimeout is how long a mirror may send nothing before the request ends.
	SilenceTimeout time.Duration
}

// Content is the body of an answer. The caller must close it.
type Content struct {
	io.ReadCloser
	// Offset is where the body begins in the blob: the offset of the call, or 0 where the mirror
	// does not support ranges.
	Offset int64
	// MediaType is the Content-Type.
	MediaType string
	// Distrust has the mirror asked last for a while: it sent what is not the content.
	Distrust func()
}

// WaitReady waits until the digest is in no mirror's pause, so that Get can ask at once.
func (c *Client) WaitReady(ctx context.Context, dgst digest.Digest) error {
	for _, host := range c.Hosts {
		if err := c.Throttle.waitReady(ctx, key(host, dgst)); err != nil {
			return err
		}
	}
	return nil
}

func key(host docker.RegistryHost, dgst digest.Digest) string { return host.Host + " " + dgst.String() }

// probeTimeout is how long a mirror may take to say which API it speaks, for which it need not look
// for anything.
const probeTimeout = 3 * time.Second

// Silent returns the mirrors that answer nothing at all.
func (c *Client) Silent(ctx context.Context) []docker.RegistryHost {
	return c.silentAt(ctx, "/", probeTimeout)
}

// SilentAbout returns the mirrors that do not answer within the AnswerTimeout whether they have a
// manifest. The reference is a tag or a digest.
func (c *Client) SilentAbout(ctx context.Context, reference string) []docker.RegistryHost {
	return c.silentAt(ctx, fmt.Sprintf("/%s/%s/%s", c.Repository, Manifests, reference), c.AnswerTimeout)
}

func (c *Client) silentAt(ctx context.Context, path string, timeout time.Duration) (silent []docker.RegistryHost) {
	answered := make([]bool, len(c.Hosts))
	var asking sync.WaitGroup
	for i, host := range c.Hosts {
		asking.Go(func() { answered[i] = c.answers(ctx, host, path, timeout) })
	}
	asking.Wait()
	for i, host := range c.Hosts {
		if !answered[i] {
			silent = append(silent, host)
		}
	}
	return silent
}

// answers reports whether a mirror says anything, be it that nobody listens at its port.
func (c *Client) answers(ctx context.Context, host docker.RegistryHost, path string, timeout time.Duration) bool {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := c.send(limited, host, path, http.Header{"Accept": {accept}})
	if err == nil {
		_ = response.Body.Close()
	}
	return err == nil || limited.Err() == nil || ctx.Err() != nil
}

// Get asks one mirror after the other for the content from the offset on. It waits for the Throttle, so the caller may call it again at once. The
// error is an *Error, unless ctx has ended.
func (c *Client) Get(ctx context.Context, kind Kind, dgst digest.Digest, offset int64) (*Content, error) {
	if len(c.Hosts) == 0 {
		return nil, &Error{cause: ErrNoMirror, Useless: true}
	}
	hosts := c.order()
	var errs []error
	failed := Error{Useless: true, Silent: true}
	for i, host := range hosts {
		pause := c.SilenceTimeout
		if i+1 < len(hosts) {
			pause = min(pause, c.AnswerTimeout)
		}
		content, err := c.get(ctx, host, kind, dgst, offset, pause)
		if err == nil {
			return content, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed.Useless = failed.Useless && (errors.Is(err, errNoAnswer) || errors.Is(err, ErrRefused))
		failed.Silent = failed.Silent && errors.Is(err, errSilent)
		failed.Starting = failed.Starting || isDialError(err) && c.Throttle.mayBeStarting(host.Host)
		errs = append(errs, err)
	}
	failed.cause = errors.Join(errs...)
	return nil, &failed
}

// order returns the mirrors to ask, in order: those that are silent only if there are no others, and
// last, the one before the other, those that have lately sent the beginning of something and no more, or
// something else.
func (c *Client) order() []docker.RegistryHost {
	hosts := slices.DeleteFunc(slices.Clone(c.Hosts), func(host docker.RegistryHost) bool { return c.Throttle.silent(host.Host) })
	if len(hosts) == 0 {
		hosts = slices.Clone(c.Hosts)
	}
	slices.SortStableFunc(hosts, func(a, b docker.RegistryHost) int {
		return c.Throttle.distrustedUntil(a.Host).Compare(c.Throttle.distrustedUntil(b.Host))
	})
	return hosts
}

// isDialError reports whether nobody takes the connection.
func isDialError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// get asks one mirror. pause is how long it may send nothing within the body.
func (c *Client) get(ctx context.Context, host docker.RegistryHost, kind Kind, dgst digest.Digest, offset int64, pause time.Duration) (*Content, error) {
	release, err := c.Throttle.acquire(ctx, key(host, dgst))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	asked := time.Now()
	answer := time.AfterFunc(c.AnswerTimeout, func() {
		if c.Throttle.noteSilence(host.Host, asked) {
			cancel(fmt.Errorf("%w for %v: %w", ErrStalled, c.AnswerTimeout, errSilent))
		}
	})
	silence := time.AfterFunc(c.SilenceTimeout, func() { cancel(fmt.Errorf("%w for %v", ErrStalled, c.SilenceTimeout)) })
	finish := func(pause time.Duration) {
		answer.Stop()
		silence.Stop()
		cancel(nil)
		release(pause)
	}

	response, err := c.sendFrom(ctx, host, fmt.Sprintf("/%s/%s/%s", c.Repository, kind, dgst), offset)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		finish(c.Throttle.AfterError)
		return nil, fmt.Errorf("ask mirror %s for %s: %w: %w", host.Host, dgst, errNoAnswer, err)
	}
	c.Throttle.noteAnswer(host.Host)
	if err := failure(response); err != nil {
		_ = response.Body.Close()
		if errors.Is(err, ErrRefused) {
			finish(c.Throttle.AfterError)
		} else {
			finish(c.Throttle.AfterMiss)
		}
		return nil, fmt.Errorf("ask mirror %s for %s: %w", host.Host, dgst, err)
	}
	answer.Stop()
	silence.Stop()
	if response.StatusCode == http.StatusOK {
		offset = 0
	}
	stalled := time.AfterFunc(pause, func() { cancel(fmt.Errorf("%w for %v", ErrStalled, pause)) })
	stalled.Stop()
	return &Content{
		ReadCloser: &body{
			ReadCloser: response.Body, host: host.Host, digest: dgst,
			ctx: ctx, timer: stalled, timeout: pause, throttle: c.Throttle,
			finish: func(complete bool) {
				stalled.Stop()
				if complete {
					finish(0)
					return
				}
				finish(c.Throttle.AfterMiss)
			},
		},
		Offset:    offset,
		MediaType: response.Header.Get("Content-Type"),
		Distrust:  func() { c.Throttle.distrust(host.Host) },
	}, nil
}

// failure is why an answer brings no content; nil if it does.
func failure(response *http.Response) error {
	switch status := response.StatusCode; {
	case status == http.StatusOK || status == http.StatusPartialContent:
		return nil
	case status == http.StatusNotFound:
		return ErrMiss
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500:
		return fmt.Errorf("unexpected status %s", response.Status)
	default:
		return fmt.Errorf("%w with status %s", ErrRefused, response.Status)
	}
}

// sendFrom asks a mirror for what is behind the offset and, if it refuses that, for all.
func (c *Client) sendFrom(ctx context.Context, host docker.RegistryHost, path string, offset int64) (*http.Response, error) {
	header := http.Header{"Accept": {accept}}
	if offset == 0 {
		return c.send(ctx, host, path, header)
	}
	header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	response, err := c.send(ctx, host, path, header)
	if err != nil || !slices.Contains(withoutRange, response.StatusCode) {
		return response, err
	}
	_ = response.Body.Close()
	header.Del("Range")
	return c.send(ctx, host, path, header)
}

// withoutRange is what servers say that do not know Range, and do not just send everything.
var withoutRange = []int{http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented}

// maxChallenges is how often a mirror may ask for another token for one request.
const maxChallenges = 2

// send asks a mirror, and again with a token if it wants one, which it gives to everybody.
func (c *Client) send(ctx context.Context, host docker.RegistryHost, path string, header http.Header) (*http.Response, error) {
	var challenges []*http.Response
	for {
		response, err := c.sendOnce(ctx, host, path, header)
		if err != nil || response.StatusCode != http.StatusUnauthorized || host.Authorizer == nil || len(challenges) == maxChallenges {
			return response, err
		}
		challenges = append(challenges, response)
		if err := host.Authorizer.AddResponses(ctx, challenges); err != nil {
			return response, nil //nolint:nilerr // a token would not help: the status says what the mirror wants
		}
		_ = response.Body.Close()
	}
}

func (c *Client) sendOnce(ctx context.Context, host docker.RegistryHost, path string, header http.Header) (*http.Response, error) {
	u := url.URL{
		Scheme:   host.Scheme,
		Host:     host.Host,
		Path:     host.Path + path,
		RawQuery: url.Values{"ns": {c.Registry}}.Encode(),
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, host.Header)
	maps.Copy(request.Header, header)
	request.Header.Set("User-Agent", c.UserAgent)
	// The digest is of the bytes as they are: no proxy may compress them.
	request.Header.Set("Accept-Encoding", "identity")
	if host.Authorizer != nil {
		if err := host.Authorizer.Authorize(ctx, request); err != nil {
			return nil, fmt.Errorf("get a token: %w", err)
		}
	}
	return host.Client.Do(request)
}

// body fails when the mirror is silent for the timeout within one Read. The time between two Reads,
// which is the reader's, does not count.
type body struct {
	io.ReadCloser
	host     string
	digest   digest.Digest
	ctx      context.Context
	timer    *time.Timer
	timeout  time.Duration
	throttle *Throttle
	complete bool
	once     sync.Once
	finish   func(complete bool)
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.timeout)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if errors.Is(err, io.EOF) {
		b.complete = true
		return n, err
	}
	if err == nil {
		b.throttle.noteAnswer(b.host)
		return n, nil
	}
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	if b.ctx.Err() == nil || errors.Is(err, ErrStalled) { // and not because nobody waits for it any more
		b.throttle.distrust(b.host)
	}
	return n, &Error{cause: fmt.Errorf("receive %s from mirror %s: %w", b.digest, b.host, err)}
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(func() { b.finish(b.complete) })
	return err
}
