// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// resolveTimeout is for one question to one host of the registry. It is short, because a node may
// reach nothing but its mirrors.
const resolveTimeout = 10 * time.Second

// errUnreachable: no answer came, from the registry or from whoever is in its place.
var errUnreachable = errors.New("cannot be asked")

// resolve asks the registry itself for the digest of a reference, never a mirror: from here or,
// where it cannot be asked as containerd would from here, through the daemon, which may have another
// network, proxy and trust, and files that are not here. Where somebody was asked, its error wraps one of
// nodeagent's errors.
func (r *Runtime) resolve(ctx context.Context, hosts *mirror.Hosts, ref imageref.Reference, credential nodeagent.Credential) (digest.Digest, error) {
	obstacle := hosts.Unusable
	if !hosts.UpstreamUnusable {
		found, err := r.resolveFromHere(ctx, hosts, ref)
		if !errors.Is(err, errUnreachable) || ctx.Err() != nil {
			return found, err
		}
		obstacle = err
	}
	found, err := r.resolveThroughDaemon(ctx, hosts, ref, credential)
	if err == nil {
		return found, nil
	}
	if down := r.checkVersion(ctx); down != nil {
		return "", fmt.Errorf("%w: %w", down, err)
	}
	// What kept the agent from asking is only a part of it now.
	return "", fmt.Errorf("%w; from the agent: %s", err, obstacle.Error())
}

// resolveFromHere asks each of the registry's hosts, by one HEAD, until one knows. If none does, an
// answer of one is final only if no other was out of reach.
func (r *Runtime) resolveFromHere(ctx context.Context, hosts *mirror.Hosts, ref imageref.Reference) (digest.Digest, error) {
	var refused, unavailable error
	for _, host := range hosts.Upstreams {
		found, err := r.ask(ctx, host, ref)
		if err == nil {
			return found, nil
		}
		err = fmt.Errorf("ask %s://%s: %w", host.Scheme, host.Host, err)
		if errors.Is(err, nodeagent.ErrRegistryUnavailable) {
			unavailable = errors.Join(unavailable, err)
		} else {
			refused = errors.Join(refused, err)
		}
	}
	if unavailable != nil {
		return "", unavailable
	}
	return "", refused
}

func (r *Runtime) ask(ctx context.Context, host docker.RegistryHost, ref imageref.Reference) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	client := *host.Client
	client.Transport = &manifestsOnly{RoundTripper: client.Transport}
	host.Client = &client
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{host}, nil },
		Headers: http.Header{"User-Agent": {r.UserAgent}},
	})
	_, desc, err := resolver.Resolve(ctx, ref.String())
	if err != nil {
		return "", fmt.Errorf("%w: %w", classify(err), err)
	}
	return desc.Digest, nil
}

// manifestsOnly answers a question about a blob as the one about a manifest before it was answered. The
// resolver asks both about a digest. A registry that comes back between the two would seem to know of
// no such image, which is final.
type manifestsOnly struct {
	http.RoundTripper
	failed error // of the last question about a manifest
}

func (m *manifestsOnly) RoundTrip(request *http.Request) (*http.Response, error) {
	if !strings.Contains(request.URL.Path, "/blobs/") {
		response, err := m.RoundTripper.RoundTrip(request)
		m.failed = err
		return response, err
	}
	if m.failed != nil {
		return nil, m.failed
	}
	return &http.Response{StatusCode: http.StatusNotFound, Status: "404 Not Found", Body: http.NoBody, Request: request}, nil
}

// askNamespace is the containerd namespace of pulls that only ask, so that what they leave is no
// image of the node.
const askNamespace = "sluice"

// nowhere is a platform for which no image has anything.
var nowhere = ocispec.Platform{OS: "none", Architecture: "none"}

// resolveThroughDaemon has the daemon ask the registry, with a configuration without mirrors. The
// daemon has no call for that alone. So a pull begins, and ends as soon as the daemon has told what the
// reference means.
func (r *Runtime) resolveThroughDaemon(ctx context.Context, hosts *mirror.Hosts, ref imageref.Reference, credential nodeagent.Credential) (digest.Digest, error) {
	dir, remove, err := hosts.WriteUpstreams()
	if err != nil {
		return "", err
	}
	defer remove()
	// The lease of the pull, which ctx has, is not there in another namespace.
	asking, cancel := context.WithTimeout(log.WithLogger(namespaces.WithNamespace(context.Background(), askNamespace), discard), resolveTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
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
	defer r.sweep(context.WithoutCancel(asking), fmt.Sprintf("name==%q", ref))
	store := image.NewStore(ref.String(), image.WithPlatforms(nowhere))
	err = r.client.Transfer(asking, source, store, transfer.WithProgress(note))
	select {
	case d := <-found:
		return d, nil
	default:
	}
	if err == nil { // the pull was over before its first word was heard
		record, err := r.client.ImageService().Get(asking, ref.String())
		return record.Target.Digest, err
	}
	return "", fmt.Errorf("%w: ask through containerd: %w", classifyText(err), err)
}

// sweep deletes the records that questions have left whose pull was faster than its end.
func (r *Runtime) sweep(ctx context.Context, filters ...string) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, askNamespace), sweepTimeout)
	defer cancel()
	left, err := r.client.ImageService().List(ctx, filters...)
	for _, record := range left {
		err = errors.Join(err, r.client.ImageService().Delete(ctx, record.Name))
	}
	if err != nil && !errdefs.IsNotFound(err) {
		r.Log.V(1).Info("Left records of questions to registries", "namespace", askNamespace, "error", err.Error())
	}
}

// sweepTimeout bounds what is done after a question, perhaps with a daemon that is away.
const sweepTimeout = 5 * time.Second

// refusalText is how containerd writes the status 401 or 403 of an answer, with or without words.
var refusalText = regexp.MustCompile(`: 40[13]( |$)`)

// classifyText is classify for an error that has come through an RPC, of which the text is left.
func classifyText(err error) error {
	switch text := err.Error(); {
	case schema1Text.MatchString(text):
		return errSchema1
	case refusalText.MatchString(text), strings.Contains(text, docker.ErrInvalidAuthorization.Error()):
		return nodeagent.ErrUnauthorized
	case errdefs.IsNotFound(err) && strings.Contains(text, "failed to resolve image") && !strings.Contains(text, noResolveHosts):
		return nodeagent.ErrImageNotFound
	default:
		return nodeagent.ErrRegistryUnavailable
	}
}

// noResolveHosts is what containerd says where no host may be asked what a tag means. It counts that
// as "not found".
const noResolveHosts = "no resolve hosts"

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
	case errdefs.IsNotFound(err) && !strings.Contains(err.Error(), noResolveHosts):
		return nodeagent.ErrImageNotFound
	default:
		return fmt.Errorf("%w: %w", nodeagent.ErrRegistryUnavailable, errUnreachable)
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
