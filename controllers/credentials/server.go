// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
)

// The bounds of a request: it has a token of a few KiB and the name of an image, and its slowest
// step is a read from the API server.
const (
	maxHeaderBytes  = 32 << 10
	readTimeout     = 10 * time.Second
	handleTimeout   = 20 * time.Second
	writeTimeout    = readTimeout + handleTimeout
	shutdownTimeout = 5 * time.Second
)

// Server serves the endpoint on every replica of the controller, whether it leads or not, because
// it writes nothing but Events. It is a manager.Runnable.
type Server struct {
	log         logr.Logger
	listener    net.Listener
	certificate GetCertificate
	handler     http.Handler
}

// GetCertificate returns the certificate to serve with, as in a tls.Config.
type GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// NewServer listens. So a wrong address is an error before anything is served. Connections are
// answered once Start runs.
func NewServer(o Options, certificate GetCertificate, handler *Handler) (*Server, error) {
	listener, err := net.Listen("tcp", o.BindAddress)
	if err != nil {
		return nil, fmt.Errorf("listen for the credential endpoint: %w", err)
	}
	return &Server{log: handler.Log, listener: listener, certificate: certificate, handler: handler}, nil
}

// Addr is the address that the server listens on.
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
		// Both ends are Sluice's, so no older TLS is needed. A pull makes one request, so HTTP/2
		// would save nothing, and there are attacks that need it.
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.certificate, NextProtos: []string{"http/1.1"}},
		ErrorLog:  log.New(connectionLog{s.log}, "", 0),
	}
	group, ctx := errgroup.WithContext(ctx)
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

// connectionLog logs what net/http reports of broken connections. It does so at level 1, because
// a client can break as many connections as it likes.
type connectionLog struct{ log logr.Logger }

func (c connectionLog) Write(line []byte) (int, error) {
	c.log.V(1).Info("Lost a connection", "error", strings.TrimSpace(string(line)))
	return len(line), nil
}
