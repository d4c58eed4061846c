// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package peermirror stands in for Spegel, the peer-to-peer mirror that our
// users run: one instance on each node serves what the node's containerd
// has, and finds the rest at its peers. It never asks an upstream.
//
//	containerd ──GET /v2/…?ns=docker.io──▶ mirror ──the node's own content
//	                                          │ X-Spegel-Mirrored: true
//	                                          ▼
//	                                   mirrors of the peers ──their own content
//
// What it keeps of Spegel's contract (v0.7):
//   - GET and HEAD of /v2/, manifests and blobs; Range on blobs only. A request
//     without ns names no registry and is answered 404.
//   - A blob, and a manifest by digest, is there soon after containerd has
//     committed it, before its image is complete. A tag is there when
//     containerd has the image record.
//   - A miss is 404, MANIFEST_UNKNOWN or BLOB_UNKNOWN, and temporary.
//   - Nothing is kept, and concurrent requests are not merged.
//   - /livez, and /readyz, which fails while no peer answers.
//   - spegel_mirror_requests_total and spegel_resolve_duration_seconds.
//
// It can behave Well, or as badly as Spegel was measured to: see Manners.
// It differs in how it finds its peers: it is given their addresses.
package peermirror

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-dev/sluice/test/distribution"
)

const (
	// MirroredHeader marks the hop from peer to peer, "only what you have".
	MirroredHeader = "X-Spegel-Mirrored"
	// announceDelay passes before peers can know of a committed blob.
	announceDelay = 30 * time.Millisecond
	// maxManifest is the size that registries agree on.
	maxManifest = 4 << 20
)

// Options of a mirror. Store and Peers are required.
type Options struct {
	Store Store
	Peers Peers
	// Manners are Well if nil.
	Manners *Manners
	// ResolveTimeout bounds the search for a peer; 2 s if 0.
	ResolveTimeout time.Duration
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
}

// Mirror is the handler of one node's mirror.
type Mirror struct {
	store   Store
	search  search
	manners *Manners
	metrics metrics
}

// New returns a mirror. Close it to end its connections to peers.
func New(opts Options) *Mirror {
	if opts.ResolveTimeout == 0 {
		opts.ResolveTimeout = 2 * time.Second
	}
	return &Mirror{
		store:   opts.Store,
		manners: opts.Manners,
		metrics: newMetrics(opts.Registerer),
		search: search{
			peers:   opts.Peers,
			timeout: opts.ResolveTimeout,
			transport: &http.Transport{ // no Proxy: peers are near
				DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
				MaxIdleConnsPerHost: 16,
				DisableCompression:  true,
			},
		},
	}
}

// Close ends the idle connections to peers.
func (m *Mirror) Close() { m.search.transport.CloseIdleConnections() }

func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/livez":
		return
	case "/readyz":
		if !m.search.reachable(r) {
			http.Error(w, "no peer answers", http.StatusInternalServerError)
		}
		return
	}
	target, registry := distribution.Parse(r.URL.Path), r.URL.Query().Get("ns")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		distribution.WriteError(w, r, http.StatusMethodNotAllowed, "the mirror is read-only")
	case target.Kind == distribution.Ping:
	case target.Kind == distribution.Other:
		http.NotFound(w, r)
	case registry == "":
		miss(w, r, "no registry is named by ns")
	case r.Header.Get(MirroredHeader) == "true":
		m.serveToPeer(w, r, target, registry)
	default:
		m.serveToNode(w, r, target, registry)
	}
}

// serveToPeer answers from what this node has and has announced.
func (m *Mirror) serveToPeer(w http.ResponseWriter, r *http.Request, target distribution.Target, registry string) {
	content, err := m.open(r.Context(), target, registry)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer content.Close()
	if time.Since(content.Committed) < announceDelay {
		miss(w, r, "not announced yet")
		return
	}
	serve(w, r, target, content)
}

// serveToNode answers from what this node has, and otherwise from a peer.
func (m *Mirror) serveToNode(w http.ResponseWriter, r *http.Request, target distribution.Target, registry string) {
	content, err := m.open(r.Context(), target, registry)
	if err == nil {
		defer content.Close()
		m.metrics.request(registry, true)
		serve(w, r, target, content)
		return
	}
	if !errors.Is(err, ErrNotFound) {
		fail(w, r, err)
		return
	}
	hit := m.relay(w, r, key(target, registry))
	m.metrics.request(registry, hit)
}

// relay answers from a peer, and reports whether one had it.
func (m *Mirror) relay(w http.ResponseWriter, r *http.Request, key string) (hit bool) {
	visit := m.manners.enter(key)
	if visit.refusal != "" {
		miss(w, r, visit.refusal)
		return false
	}
	missed := true
	defer func() { m.manners.leave(key, missed) }()
	begin := time.Now()
	holders := m.search.holders(r)
	if visit.impatient {
		all := slices.Collect(holders)
		if visit.refuses(len(all)) {
			miss(w, r, "asked for a moment ago")
			return false
		}
		holders = slices.Values(all)
	}
	if visit.gaveUp {
		wait(r.Context(), falseMissDelay)
		miss(w, r, "waited too long for inflight dials")
		return false
	}
	for peer := range holders {
		m.metrics.resolved(time.Since(begin))
		missed = false // a transfer that breaks off is none either
		if m.search.forward(w, r, peer) {
			return true
		}
		missed = true
	}
	miss(w, r, "no peer holds it")
	return false
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// key names content in the search for it: a digest is the same in every
// repository.
func key(target distribution.Target, registry string) string {
	if target.Kind == distribution.Tag {
		return imageName(target, registry)
	}
	return target.Reference
}

// imageName is the name of containerd's image record.
func imageName(target distribution.Target, registry string) string {
	return registry + "/" + target.Repository + ":" + target.Reference
}

func (m *Mirror) open(ctx context.Context, target distribution.Target, registry string) (Content, error) {
	if target.Kind == distribution.Tag {
		resolved, err := m.store.Resolve(ctx, imageName(target, registry))
		if err != nil {
			return Content{}, err
		}
		return m.store.Open(ctx, resolved)
	}
	parsed, err := digest.Parse(target.Reference)
	if err != nil {
		return Content{}, errors.Join(ErrNotFound, err)
	}
	return m.store.Open(ctx, parsed)
}

func serve(w http.ResponseWriter, r *http.Request, target distribution.Target, content Content) {
	w.Header().Set("Docker-Content-Digest", content.Digest.String())
	if target.Kind == distribution.Blob {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, content)
		return
	}
	manifest, err := io.ReadAll(io.LimitReader(content, maxManifest))
	if err != nil {
		fail(w, r, err)
		return
	}
	mediaType := mediaTypeOf(manifest)
	if mediaType == "" {
		miss(w, r, "content is not a manifest")
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(manifest)
	}
}

// mediaTypeOf finds a manifest's type in its content: containerd does not
// keep the one it was served with. It is "" for anything else.
func mediaTypeOf(manifest []byte) string {
	var fields struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
	}
	switch err := json.Unmarshal(manifest, &fields); {
	case err != nil:
		return ""
	case fields.MediaType != "":
		return fields.MediaType
	case fields.Manifests != nil:
		return "application/vnd.oci.image.index.v1+json"
	case fields.Layers != nil:
		return "application/vnd.oci.image.manifest.v1+json"
	default:
		return ""
	}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNotFound) {
		miss(w, r, "this node does not hold it")
		return
	}
	distribution.WriteError(w, r, http.StatusInternalServerError, err.Error())
}

func miss(w http.ResponseWriter, r *http.Request, reason string) {
	distribution.WriteError(w, r, http.StatusNotFound, reason)
}
