// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package upstream is the registry outside the cluster, as tests need it: it
// serves images that are streamed rather than stored, writes down who asked
// for what, and fails on command.
//
//	server, err := upstream.New(upstream.Options{})
//	err = server.Start("10.0.0.1:5000")
//	err = server.Push("team/app:1.0", image)
//	defer server.Inject(upstream.Blobs, 1, upstream.ResetAfter(1<<20))()
//	…
//	for _, t := range server.Requests().Tallies() {
//		// t.Complete and t.Partial say how often the blob went over the uplink.
//	}
//
// It answers the pull half of the OCI distribution API, with Range on blobs.
// Every request is recorded when it arrives, also one that is refused or never
// answered. What it can be told to do, at any time and from any goroutine:
// Protect (credentials), SetRate, SetLatency, CutOff, Inject. Requests on the
// way see the change at once.
//
// The requests are also served as JSON, for other processes; see AdminPath.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Options of a server. The zero value speaks plain HTTP.
type Options struct {
	// TLS makes the server speak HTTPS with a certificate of a CA of its own.
	TLS bool
	// ClientTLS is TLS, and clients are turned away that do not show a certificate of another CA
	// of the server's own. See ClientPEM.
	ClientTLS bool
	// Hosts are further names or addresses for the certificate, beside the one
	// that the server listens on.
	Hosts []string
}

// Server is one registry. Make it with New.
type Server struct {
	ca      *authority // nil for HTTP
	clients *authority // nil: clients need no certificate
	hosts   []string

	mu           sync.Mutex
	changed      chan struct{}  // closed and replaced when waiting requests should look again
	http         *http.Server   // nil while refusing connections
	address      string         // as bound, so that a restored server is where it was
	running      sync.WaitGroup // the listener, connections and handlers
	connections  map[string]int
	repositories map[string]repository
	requests     []*Request
	protection   protection
	uplink       *rate.Limiter // nil: unlimited
	latency      time.Duration
	hanging      bool
	faults       []*fault
}

// New returns a server that does not listen yet.
func New(opts Options) (*Server, error) {
	s := &Server{
		hosts:        opts.Hosts,
		changed:      make(chan struct{}),
		connections:  map[string]int{},
		repositories: map[string]repository{},
		protection:   protection{rules: map[string]*Auth{}, tokens: map[string]grant{}},
	}
	if opts.TLS || opts.ClientTLS {
		ca, err := newAuthority("Sluice test CA")
		if err != nil {
			return nil, fmt.Errorf("make CA: %w", err)
		}
		s.ca = ca
	}
	if opts.ClientTLS {
		clients, err := newAuthority("Sluice test CA of clients")
		if err != nil {
			return nil, fmt.Errorf("make CA of clients: %w", err)
		}
		s.clients = clients
	}
	return s, nil
}

// Start listens on the address; port 0 takes a free one.
func (s *Server) Start(address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listen(address)
}

// listen is called with the lock held.
func (s *Server) listen(address string) error {
	if s.http != nil {
		return errors.New("server is already listening")
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s.address = listener.Addr().String()
	if s.ca != nil {
		certificate, err := s.ca.issueForServer(s.address, s.hosts)
		if err != nil {
			return errors.Join(fmt.Errorf("issue certificate: %w", err), listener.Close())
		}
		config := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
		if s.clients != nil {
			config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, s.clients.pool()
		}
		listener = tls.NewListener(listener, config)
	}
	server := &http.Server{
		Handler:           s,
		ConnState:         s.connState,
		ErrorLog:          log.New(discard{}, "", 0), // clients that speak TLS to HTTP, and the like
		ReadHeaderTimeout: time.Minute,
	}
	s.http = server
	s.running.Go(func() { _ = server.Serve(listener) }) // it always returns ErrServerClosed
	return nil
}

// Close ends every connection, and returns when no handler runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	err := s.disconnect()
	s.mu.Unlock()
	s.running.Wait()
	return err
}

// disconnect is called with the lock held.
func (s *Server) disconnect() error {
	if s.http == nil {
		return nil
	}
	err := s.http.Close()
	s.http = nil
	return err
}

// Host is "address:port", as it stands in an image reference.
func (s *Server) Host() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.address
}

// URL is the server's base, without a final slash.
func (s *Server) URL() string {
	if s.ca != nil {
		return "https://" + s.Host()
	}
	return "http://" + s.Host()
}

// CAPEM is the certificate that clients have to trust; nil for plain HTTP.
func (s *Server) CAPEM() []byte {
	if s.ca == nil {
		return nil
	}
	return s.ca.pem
}

// ClientPEM issues a certificate that the server accepts of clients, and its key. Only a server
// with ClientTLS does.
func (s *Server) ClientPEM() (certificate, key []byte, err error) {
	if s.clients == nil {
		return nil, nil, errors.New("server asks no client for a certificate: set Options.ClientTLS")
	}
	return s.clients.issueForClient()
}

// Connections returns how often each address connected. Unlike Requests it counts
// also clients that connected and then asked for nothing, or spoke no HTTP.
func (s *Server) Connections() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.connections)
}

func (s *Server) connState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		// net/http calls this before Serve can return, so that Close waits for
		// this connection, too.
		s.running.Add(1)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.connections[hostOf(conn.RemoteAddr().String())]++
	case http.StateClosed, http.StateHijacked:
		s.running.Done()
	case http.StateActive, http.StateIdle:
	}
}

// update changes what requests depend on, and lets those that wait look again.
func (s *Server) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// waitUntil returns when the condition holds, which is asked for under the
// lock, or with the context's error.
func (s *Server) waitUntil(ctx context.Context, condition func() bool) error {
	for {
		s.mu.Lock()
		done, changed := condition(), s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
