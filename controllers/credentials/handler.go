// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Handler answers the requests of node agents.
type Handler struct {
	// Log receives each answer and each denial, without any credential.
	Log logr.Logger

	tokens      tokenReviewer
	pullSecrets pullSecrets
	throttle    *throttle
	metrics     *Metrics
	mux         *http.ServeMux
}

// NewHandler makes a handler that creates TokenReviews with writer and reads everything with
// apiReader. The latter must not be a cache, because Secrets must not stay in memory, and an old
// one must not be handed out.
func NewHandler(o Options, writer client.Writer, apiReader client.Reader, recorder events.EventRecorder, metrics *Metrics, log logr.Logger) *Handler {
	h := &Handler{
		Log:         log,
		tokens:      tokenReviewer{writer: writer, audience: o.Audience, username: o.agentUsername()},
		pullSecrets: pullSecrets{apiReader: apiReader, recorder: recorder, log: log},
		throttle:    newThrottle(),
		metrics:     metrics,
		mux:         http.NewServeMux(),
	}
	h.mux.HandleFunc("POST "+credentialapi.Path, h.serve)
	return h
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), handleTimeout)
	defer cancel()

	found, err := h.answer(ctx, w, r)
	if err == nil {
		h.metrics.count(resultOK)
		write(w, http.StatusOK, credentialapi.Response{Credentials: append([]credentialapi.Credential{}, found...)}) // [], not null
		return
	}
	var denied *denial
	if !errors.As(err, &denied) {
		denied = deny(http.StatusServiceUnavailable, credentialapi.ReasonUnavailable, "the API server did not answer; try again").withDetail(err.Error())
	}
	h.metrics.count(string(denied.body.Reason))
	h.Log.Info("Denied credentials", "status", denied.status, "reason", denied.body.Reason, "detail", denied.detail,
		"node", denied.node, "remote", r.RemoteAddr)
	switch denied.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	write(w, denied.status, denied.body)
}

// answer returns the credentials that r may have. An error that is not a denial comes from the
// API server.
func (h *Handler) answer(ctx context.Context, w http.ResponseWriter, r *http.Request) ([]credentialapi.Credential, error) {
	done, ok := h.throttle.admit(r.RemoteAddr)
	if !ok {
		return nil, deny(http.StatusTooManyRequests, credentialapi.ReasonTooManyRequests, "too many requests; try again later")
	}
	defer done()

	node, err := h.tokens.nodeOf(ctx, bearer(r))
	if err != nil {
		return nil, err
	}
	image, err := decode(w, r)
	if err != nil {
		return nil, forNode(node, err)
	}
	found, err := h.pullSecrets.credentials(ctx, node, image)
	return found, forNode(node, err)
}

// bearer is the token of the request; empty if it has none.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func decode(w http.ResponseWriter, r *http.Request) (imageref.Reference, error) {
	var request credentialapi.Request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, credentialapi.MaxRequestBytes)).Decode(&request); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return imageref.Reference{}, deny(http.StatusRequestEntityTooLarge, credentialapi.ReasonBadRequest, "the request is too large")
		}
		return imageref.Reference{}, deny(http.StatusBadRequest, credentialapi.ReasonBadRequest, `the request is not JSON of the form {"image": "NAME"}`)
	}
	image, err := imageref.Parse(request.Image)
	if err != nil {
		return imageref.Reference{}, deny(http.StatusBadRequest, credentialapi.ReasonBadRequest, "image is not an image reference")
	}
	return image, nil
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// An error means that the agent has gone. It asks again.
	_ = json.NewEncoder(w).Encode(body)
}
