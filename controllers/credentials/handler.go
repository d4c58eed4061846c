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

	tokens   tokens
	secrets  secrets
	limits   *limits
	requests *prometheus.CounterVec
	mux      *http.ServeMux
}

// NewHandler makes a handler that creates TokenReviews with writer and reads
// everything with reader. That one must not be a cache: neither may Secrets be kept
// in memory, nor an old one be handed out.
func NewHandler(o Options, writer client.Writer, reader client.Reader, recorder events.EventRecorder, metrics prometheus.Registerer, log logr.Logger) (*Handler, error) {
	h := &Handler{
		Log:     log,
		tokens:  tokens{writer: writer, audience: o.Audience, username: o.agentUsername()},
		secrets: secrets{reader: reader, recorder: recorder, log: log},
		limits:  newLimits(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_credential_requests_total",
			Help: "Requests of node agents for registry credentials, by result: OK, or the reason of the refusal.",
		}, []string{"result"}),
		mux: http.NewServeMux(),
	}
	if err := metrics.Register(h.requests); err != nil {
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
		h.requests.WithLabelValues("OK").Inc()
		write(w, http.StatusOK, credentialapi.Response{Credentials: append([]credentialapi.Credential{}, found...)}) // [], not null
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		no = refuse(http.StatusServiceUnavailable, credentialapi.ReasonUnavailable, "the API server did not answer; try again").because(err.Error())
	}
	h.requests.WithLabelValues(string(no.body.Reason)).Inc()
	h.Log.Info("Refused to hand out credentials", "status", no.status, "reason", no.body.Reason, "why", no.why,
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
	leave, ok := h.limits.enter(r.RemoteAddr)
	if !ok {
		return nil, refuse(http.StatusTooManyRequests, credentialapi.ReasonTooManyRequests, "too many requests; try again later")
	}
	defer leave()

	node, err := h.tokens.node(ctx, bearer(r))
	if err != nil {
		return nil, err
	}
	image, err := decode(w, r)
	if err != nil {
		return nil, of(node, err)
	}
	found, err := h.secrets.find(ctx, node, image)
	return found, of(node, err)
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
			return imageref.Reference{}, refuse(http.StatusRequestEntityTooLarge, credentialapi.ReasonBadRequest, "the request is too large")
		}
		return imageref.Reference{}, refuse(http.StatusBadRequest, credentialapi.ReasonBadRequest, `the request is not JSON of the form {"image": "NAME"}`)
	}
	image, err := imageref.Parse(request.Image)
	if err != nil {
		return imageref.Reference{}, refuse(http.StatusBadRequest, credentialapi.ReasonBadRequest, "image is not an image reference")
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

// refusal is an answer without credentials.
type refusal struct {
	status int
	body   credentialapi.Error
	// why is more detail than the caller gets, for the log. It holds no token.
	why string
	// node is empty until the token is known to be good.
	node string
}

func refuse(status int, reason credentialapi.Reason, message string) *refusal {
	return &refusal{status: status, body: credentialapi.Error{Reason: reason, Message: message}, why: message}
}

// because replaces what the log says.
func (r *refusal) because(why string) *refusal {
	r.why = why
	return r
}

// Error is what the log says.
func (r *refusal) Error() string { return r.why }

// of names the node in a refusal.
func of(node string, err error) error {
	var no *refusal
	if errors.As(err, &no) {
		no.node = node
	}
	return err
}
