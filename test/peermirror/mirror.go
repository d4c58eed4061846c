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
//   - A blob, and a manifest by digest, is there for peers soon after containerd
//     has committed it, before its image is complete, if the label of its source
//     comes in time: see Containerd.Track. A tag is there when containerd has the
//     image record.
//   - A miss is 404, MANIFEST_UNKNOWN or BLOB_UNKNOWN, and temporary.
//   - Nothing is kept, and concurrent requests are not merged.
//   - /livez, and /readyz, which fails while no peer answers.
//   - It ends when its containerd does.
//   - spegel_mirror_requests_total and spegel_resolve_duration_seconds.
//
// With manners it behaves as Spegel was measured to (see Manners). Without, it finds
// what there is, whatever its labels, and outlives its containerd. How peers are found
// is all that is its own: they are named to it.
package peermirror

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-dev/sluice/test/distribution"
)

const (
	// MirroredHeader marks the hop from peer to peer, "only what you have".
	MirroredHeader = "X-Spegel-Mirrored"
	// announceDelay passes before peers can know of an advertised blob.
	announceDelay = 30 * time.Millisecond
	// maxManifest is the size that registries agree on.
	maxManifest = 4 << 20
)

// Options of a mirror. Store and Peers are required.
type Options struct {
	Store Store
	Peers Peers
	// Manners are good if nil.
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

// serveToPeer answers from what this node has, and has advertised.
func (m *Mirror) serveToPeer(w http.ResponseWriter, r *http.Request, target distribution.Target, registry string) {
	content, err := m.open(r.Context(), target, registry)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer content.Close()
	if target.Kind != distribution.Tag && !content.advertised() {
		miss(w, r, "not advertised")
		return
	}
	serve(w, r, target, content)
}

// serveToNode answers from what this node has, or else from a peer.
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
	begin := time.Now()
	if m.manners == nil {
		for peer := range m.search.holders(r) {
			m.metrics.resolved(time.Since(begin))
			if m.search.forward(w, r, peer) {
				return true
			}
		}
		miss(w, r, "no peer has it")
		return false
	}
	visit := m.manners.visit(key, func(most int) []string {
		found := m.search.collect(r, most)
		if len(found) > 0 {
			m.metrics.resolved(time.Since(begin))
		}
		return found
	})
	switch {
	case visit.gaveUp:
		wait(r.Context(), falseMissDelay)
		miss(w, r, "waited too long for inflight dials")
		return false
	case visit.stuck:
		wait(r.Context(), m.search.timeout)
		miss(w, r, "waited too long for new peer")
		return false
	}
	for _, peer := range visit.holders {
		if m.search.forward(w, r, peer) {
			return true
		}
		m.manners.drop(key, peer)
	}
	miss(w, r, "no peer has it")
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

// mediaTypeOf tells a manifest's type from its content: containerd does not
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
		miss(w, r, "this node does not have it")
		return
	}
	distribution.WriteError(w, r, http.StatusInternalServerError, err.Error())
}

func miss(w http.ResponseWriter, r *http.Request, reason string) {
	distribution.WriteError(w, r, http.StatusNotFound, reason)
}
