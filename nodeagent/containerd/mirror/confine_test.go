// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
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

// open counts the bodies of answers that are not closed.
type open struct {
	http.RoundTripper
	bodies *atomic.Int32
}

func (o open) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := o.RoundTripper.RoundTrip(r)
	if err == nil {
		o.bodies.Add(1)
		response.Body = openBody{response.Body, o.bodies}
	}
	return response, err
}

type openBody struct {
	io.ReadCloser
	bodies *atomic.Int32
}

func (b openBody) Close() error {
	b.bodies.Add(-1)
	return b.ReadCloser.Close()
}

func TestAMirrorsChallengesAreClosed(t *testing.T) {
	var given, bodies atomic.Int32
	var server *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/token", serveTokens(&given))
	mux.HandleFunc("/v2/", wantToken(func() string { return server.URL + "/token" }))
	server = httptest.NewServer(mux)
	defer server.Close()
	client := clientOf(t)
	client.Hosts = []docker.RegistryHost{confined(server, Config{})}
	transport := client.Hosts[0].Client.Transport.(*confinedTransport)
	transport.RoundTripper = open{transport.RoundTripper, &bodies}
	content, err := client.Get(t.Context(), Blobs, blobDigest, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = content.Close()
	if n := bodies.Load(); n != 0 {
		t.Errorf("%d answers are open", n)
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

func TestATokenThatEndsIsAskedForAgain(t *testing.T) {
	var given atomic.Int32
	var valid atomic.Value
	var server *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) {
		token := fmt.Sprintf("token-%d", given.Add(1))
		valid.Store("Bearer " + token)
		_, _ = fmt.Fprintf(w, `{"token": %q}`, token) // without its end
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != valid.Load() {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="mirror"`, server.URL+"/token"))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		serveBlob(w, r)
	})
	server = httptest.NewServer(mux)
	defer server.Close()
	client := clientOf(t)
	client.Hosts = []docker.RegistryHost{confined(server, Config{})}
	valid.Store("none")
	for want := range 3 {
		content, err := client.Get(t.Context(), Blobs, blobDigest, 0)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := io.ReadAll(content); string(raw) != blobText || err != nil {
			t.Errorf("%q, %v", raw, err)
		}
		_ = content.Close()
		if n := int(given.Load()); n != want+1 {
			t.Errorf("%d tokens, want %d", n, want+1)
		}
		valid.Store("none")
	}
}

func TestWhatAMirrorIsToldIsNotForItsStorage(t *testing.T) {
	var told http.Header
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told = r.Header.Clone()
		serveBlob(w, r)
	}))
	defer storage.Close()
	var given atomic.Int32
	var server *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/token", serveTokens(&given))
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" || r.Header.Get("X-Of-Host") == "" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="mirror"`, server.URL+"/token"))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, storage.URL, http.StatusTemporaryRedirect) // the same host, another port
	})
	server = httptest.NewServer(mux)
	defer server.Close()
	client := clientOf(t)
	client.Hosts = []docker.RegistryHost{confined(server, Config{RedirectHosts: []string{hostOfServer(storage)}})}
	content, err := client.Get(t.Context(), Blobs, blobDigest, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = content.Close() }()
	if raw, err := io.ReadAll(content); string(raw) != blobText[4:] || err != nil {
		t.Errorf("%q, %v", raw, err)
	}
	if told.Get("Authorization") != "" || told.Get("X-Of-Host") != "" || told.Get("Range") != "bytes=4-" {
		t.Errorf("the storage was told %v", told)
	}
}

func TestWhichHostsAreTheSame(t *testing.T) {
	for _, tt := range []struct {
		reason         string
		mirror, target string
		redirectHosts  []string
		allowed        bool
	}{
		{"the mirror itself", "http://cache.example.com:5000", "http://cache.example.com:5000/x", nil, true},
		{"in capitals", "http://cache.example.com:5000", "http://CACHE.example.com:5000/x", nil, true},
		{"another port is another host", "http://cache.example.com:5000", "http://cache.example.com:9000/x", nil, false},
		{"a default port is none", "https://cache.example.com", "https://cache.example.com:443/x", nil, true},
		{"from HTTPS to HTTP", "https://cache.example.com", "http://cache.example.com/x", nil, false},
		{"from HTTP to HTTPS", "http://cache.example.com", "https://cache.example.com/x", nil, true},
		{"a named one, however it is written", "https://cache.example.com", "https://Storage.example.com:443/x", []string{"storage.example.com"}, true},
		{"a named one in clear", "https://cache.example.com", "http://storage.example.com/x", []string{"storage.example.com"}, false},
		{"a user name is no host", "https://cache.example.com", "https://cache.example.com@evil.example.com/x", nil, false},
		{"the registry under another name", "https://cache.example.com", "https://registry-1.docker.io/x", []string{"registry-1.docker.io"}, false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			u, err := url.Parse(tt.mirror)
			if err != nil {
				t.Fatal(err)
			}
			hosts := Hosts{registry: "docker.io", config: Config{RedirectHosts: tt.redirectHosts}}
			mirror := hosts.confine(docker.RegistryHost{Client: &http.Client{Transport: noContent{}}, Scheme: u.Scheme, Host: u.Host})
			response, err := mirror.Client.Get(tt.target)
			if err == nil {
				_ = response.Body.Close()
			}
			if (err == nil) != tt.allowed {
				t.Errorf("%v", err)
			}
		})
	}
}

// noContent answers every request.
type noContent struct{}

func (noContent) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody, Request: r}, nil
}
