// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credentials is the HTTPS endpoint from which node agents get the registry
// credentials for the images that they shall pull. It exists so that agents need no
// right to read Secrets. A request goes through
//
//	limits ─▶ token ─▶ NodeImageSet of the token's node ─▶ ImagePrefetches ─▶ Secrets
//	  429      401            404, 403                       (left out)          503
//
// and each step reads what is in the API server now: nothing is cached, so that a
// rotated Secret, a revoked token and a withdrawn image all count at the next request.
// docs/credentials.md describes the protocol and what it protects.
package credentials

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

// Options say where the endpoint listens and whom it answers.
type Options struct {
	// BindAddress is HOST:PORT or :PORT. Empty: there is no endpoint, and images
	// that need credentials cannot be prefetched.
	BindAddress string
	// CertDir holds tls.crt and tls.key, which are read again when they change.
	CertDir string
	// Audience is what a token has to be issued for.
	Audience string
	// AgentServiceAccount is NAMESPACE/NAME of the only service account that gets an answer.
	AgentServiceAccount string
}

// Validate says what is missing or malformed.
func (o Options) Validate() error {
	if o.BindAddress == "" {
		return nil
	}
	var problems []error
	if _, _, err := net.SplitHostPort(o.BindAddress); err != nil {
		problems = append(problems, fmt.Errorf("--credentials-bind-address must be HOST:PORT or :PORT: %w", err))
	}
	if o.CertDir == "" {
		problems = append(problems, errors.New("--cert-dir must be set: the credential endpoint serves HTTPS only"))
	}
	if o.Audience == "" {
		problems = append(problems, fmt.Errorf("--credentials-audience must be set; the usual one is %s", credentialapi.Audience))
	}
	namespace, name, ok := strings.Cut(o.AgentServiceAccount, "/")
	if !ok || len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		problems = append(problems, fmt.Errorf("--agent-service-account must be NAMESPACE/NAME, not %q", o.AgentServiceAccount))
	}
	return errors.Join(problems...)
}

// agentUsername is the name under which the API server knows the agents.
func (o Options) agentUsername() string {
	return "system:serviceaccount:" + strings.Replace(o.AgentServiceAccount, "/", ":", 1)
}

// The largest request is a token of some KiB and an image name, and the slowest step
// a read of the API server.
const (
	maxHeaderBytes  = 32 << 10
	readTimeout     = 10 * time.Second
	handleTimeout   = 20 * time.Second
	writeTimeout    = readTimeout + handleTimeout
	shutdownTimeout = 5 * time.Second
)

// Server serves the endpoint on every replica of the controller, the leader or not:
// it writes nothing but Events. It is a manager.Runnable.
type Server struct {
	log      logr.Logger
	listener net.Listener
	certs    *certwatcher.CertWatcher
	handler  http.Handler
}

// NewServer listens, so that a wrong address or a missing certificate is told at once.
// Connections are answered from Start on.
func NewServer(o Options, handler *Handler) (*Server, error) {
	certs, err := certwatcher.New(filepath.Join(o.CertDir, "tls.crt"), filepath.Join(o.CertDir, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("load certificate of the credential endpoint: %w", err)
	}
	listener, err := net.Listen("tcp", o.BindAddress)
	if err != nil {
		return nil, fmt.Errorf("listen for the credential endpoint: %w", err)
	}
	return &Server{log: handler.Log, listener: listener, certs: certs, handler: handler}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// NeedLeaderElection is false: an agent may ask any replica.
func (s *Server) NeedLeaderElection() bool { return false }

// Start serves until ctx ends.
func (s *Server) Start(ctx context.Context) error {
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       writeTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// Both ends are ours, so nothing older is needed. Each pull is one request:
		// HTTP/2 would bring nothing but the ways to abuse it.
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.certs.GetCertificate, NextProtos: []string{"http/1.1"}},
		ErrorLog:  log.New(connectionLog{s.log}, "", 0),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.certs.Start(ctx) })
	group.Go(func() error {
		s.log.Info("Started credential endpoint", "address", s.listener.Addr().String())
		if err := server.ServeTLS(s.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the credential endpoint: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		return server.Shutdown(grace)
	})
	return group.Wait()
}

// connectionLog takes what net/http says of broken connections, which is the
// business of whoever broke them.
type connectionLog struct{ log logr.Logger }

func (c connectionLog) Write(line []byte) (int, error) {
	c.log.V(1).Info("Lost a connection", "error", strings.TrimSpace(string(line)))
	return len(line), nil
}
