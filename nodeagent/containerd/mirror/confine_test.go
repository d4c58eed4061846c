// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

func hostOfServer(server *httptest.Server) string { return strings.TrimPrefix(server.URL, "http://") }

// serveTokens gives out a token to everybody, and counts them.
func serveTokens(given *atomic.Int32) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok || r.Method != http.MethodGet {
			http.Error(w, "not anonymous", http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintf(w, `{"token": "token-%d", "expires_in": 300}`, given.Add(1))
	}
}

// wantToken serves the blob to those that have a token, which are sent to the realm.
func wantToken(realm func() string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer token-") {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="mirror",scope="repository:library/app:pull"`, realm()))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		serveBlob(w, r)
	}
}

func TestWhereAMirrorMayLead(t *testing.T) {
	var given atomic.Int32
	storage := httptest.NewServer(http.HandlerFunc(serveBlob))
	defer storage.Close()
	tokens := httptest.NewServer(serveTokens(&given))
	defer tokens.Close()
	redirect := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, storage.URL, http.StatusTemporaryRedirect)
	}
	for _, tt := range []struct {
		reason  string
		handler http.HandlerFunc
		config  Config
		err     string
	}{
		{"storage that nobody named", redirect, Config{}, "leads off the mirror, to " + hostOfServer(storage)},
		{"storage that is named", redirect, Config{RedirectHosts: []string{hostOfServer(storage)}}, ""},
		{
			"storage that is named and is the registry: a peer brings nothing in", redirect,
			Config{RedirectHosts: []string{hostOfServer(storage)}, Upstreams: []string{hostOfServer(storage)}}, "leads off the mirror",
		},
		{"a token server that nobody named", wantToken(func() string { return tokens.URL }), Config{}, "leads off the mirror, to " + hostOfServer(tokens)},
		{"a token server that is named", wantToken(func() string { return tokens.URL }), Config{RedirectHosts: []string{hostOfServer(tokens)}}, ""},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			client := clientOf(t)
			client.Hosts = []docker.RegistryHost{confined(server, tt.config)}
			content, err := client.Get(t.Context(), Blobs, blobDigest, 0)
			if tt.err != "" {
				var failed *Error
				if !errors.As(err, &failed) || !failed.Useless || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = content.Close() }()
			if raw, err := io.ReadAll(content); string(raw) != blobText || err != nil {
				t.Errorf("%q, %v", raw, err)
			}
		})
	}
}

func TestAMirrorMayWantATokenThatItGivesToEverybody(t *testing.T) {
	var given atomic.Int32
	var server *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/token", serveTokens(&given))
	mux.HandleFunc("/v2/", wantToken(func() string { return server.URL + "/token" }))
	server = httptest.NewServer(mux)
	defer server.Close()
	client := clientOf(t)
	client.Hosts = []docker.RegistryHost{confined(server, Config{})}
	for range 3 {
		content, err := client.Get(t.Context(), Blobs, blobDigest, 0)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := io.ReadAll(content); string(raw) != blobText || err != nil {
			t.Errorf("%q, %v", raw, err)
		}
		_ = content.Close()
	}
	if n := given.Load(); n != 1 {
		t.Errorf("%d tokens, want one for all requests", n)
	}
}

func TestATokenThatOpensNothingIsAskedForOnce(t *testing.T) {
	var given atomic.Int32
	var server *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/token", serveTokens(&given))
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="mirror",error="insufficient_scope"`, server.URL+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	})
	server = httptest.NewServer(mux)
	defer server.Close()
	client := clientOf(t)
	client.Hosts = []docker.RegistryHost{confined(server, Config{})}
	_, err := client.Get(t.Context(), Blobs, blobDigest, 0)
	var failed *Error
	if !errors.As(err, &failed) || !failed.Useless || !errors.Is(err, ErrRefused) || given.Load() > 2 {
		t.Errorf("%v, after %d tokens", err, given.Load())
	}
}

func TestAConfinedMirrorKeepsNoConnections(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(serveBlob))
	defer server.Close()
	closed := false
	host := confined(server, Config{})
	host.Client.Transport.(*confinedTransport).RoundTripper = idle{closed: &closed}
	host.Client.CloseIdleConnections()
	if !closed {
		t.Error("its idle connections stay open")
	}
}

// idle notes that its idle connections were closed.
type idle struct {
	http.RoundTripper
	closed *bool
}

func (i idle) CloseIdleConnections() { *i.closed = true }
