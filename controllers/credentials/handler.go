// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Handler answers the requests of node agents.
type Handler struct {
	// Log is where refusals and answers are told, without what they hold.
	Log logr.Logger

	tokens      tokenReviewer
	pullSecrets pullSecrets
	throttle    *throttle
	metrics     *prometheus.CounterVec
	mux         *http.ServeMux
}

// NewHandler makes a handler that creates TokenReviews with writer and reads
// everything with reader. That one must not be a cache: neither may Secrets be kept
// in memory, nor an old one be handed out.
func NewHandler(o Options, writer client.Writer, reader client.Reader, recorder events.EventRecorder, metrics prometheus.Registerer, log logr.Logger) (*Handler, error) {
	h := &Handler{
		Log:         log,
		tokens:      tokenReviewer{writer: writer, audience: o.Audience, username: o.agentUsername()},
		pullSecrets: pullSecrets{apiReader: reader, recorder: recorder, log: log},
		throttle:    newThrottle(),
		metrics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_credential_requests_total",
			Help: "Requests of node agents for registry credentials, by result: OK, or the reason of the refusal.",
		}, []string{"result"}),
		mux: http.NewServeMux(),
	}
	if err := metrics.Register(h.metrics); err != nil {
		return nil, fmt.Errorf("register metrics of the credential endpoint: %w", err)
	}
	h.mux.HandleFunc("POST "+credentialapi.Path, h.serve)
	return h, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), handleTimeout)
	defer cancel()

	found, err := h.answer(ctx, w, r)
	if err == nil {
		h.metrics.WithLabelValues("OK").Inc()
		write(w, http.StatusOK, credentialapi.Response{Credentials: append([]credentialapi.Credential{}, found...)}) // [], not null
		return
	}
	var no *denial
	if !errors.As(err, &no) {
		no = deny(http.StatusServiceUnavailable, credentialapi.ReasonUnavailable, "the API server did not answer; try again").withDetail(err.Error())
	}
	h.metrics.WithLabelValues(string(no.body.Reason)).Inc()
	h.Log.Info("Refused to hand out credentials", "status", no.status, "reason", no.body.Reason, "why", no.detail,
		"node", no.node, "remote", r.RemoteAddr)
	switch no.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	write(w, no.status, no.body)
}

// answer finds the credentials that r may have. An error that is no refusal is one of
// the API server's.
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

// bearer is the token of the request, or empty.
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
	// An error means that the agent has gone, and it will ask again.
	_ = json.NewEncoder(w).Encode(body)
}

// denial is an answer without credentials.
type denial struct {
	status int
	body   credentialapi.Error
	// detail is more detail than the caller gets, for the log. It holds no token.
	detail string
	// node is empty until the token is known to be good.
	node string
}

func deny(status int, reason credentialapi.Reason, message string) *denial {
	return &denial{status: status, body: credentialapi.Error{Reason: reason, Message: message}, detail: message}
}

// withDetail replaces what the log says.
func (r *denial) withDetail(why string) *denial {
	r.detail = why
	return r
}

// Error is what the log says.
func (r *denial) Error() string { return r.detail }

// forNode names the node in a refusal.
func forNode(node string, err error) error {
	var no *denial
	if errors.As(err, &no) {
		no.node = node
	}
	return err
}
