// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"

	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bounded is far above what anything here takes, so that reaching it is an error.
const bounded = 10 * time.Second

// fixture is a server with one image "team/app:1.0" of a 1 MiB layer.
type fixture struct {
	*upstream.Server
	t      *testing.T
	client *http.Client
	image  v1.Image
	layer  string // digest
}

func start(t *testing.T, opts upstream.Options) *fixture {
	t.Helper()
	server, err := upstream.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	layer := images.Layer("app", images.MiB)
	image, err := images.Image(images.Options{Layers: []v1.Layer{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Push("team/app:1.0", image); err != nil {
		t.Fatal(err)
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	if pem := server.CAPEM(); pem != nil {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return &fixture{Server: server, t: t, client: &http.Client{Transport: transport, Timeout: bounded}, image: image, layer: digest.String()}
}

func (f *fixture) blob() string     { return "/v2/team/app/blobs/" + f.layer }
func (f *fixture) manifest() string { return "/v2/team/app/manifests/1.0" }

// do sends a request. Headers are "name: value".
func (f *fixture) do(method, path string, headers ...string) (*http.Response, error) {
	f.t.Helper()
	request, err := http.NewRequestWithContext(f.t.Context(), method, f.URL()+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range headers {
		if h == "" {
			continue
		}
		key, value, _ := strings.Cut(h, ": ")
		request.Header.Set(key, value)
	}
	return f.client.Do(request)
}

func (f *fixture) transport() *http.Transport { return f.client.Transport.(*http.Transport) }

// get returns the status and what could be read of the body.
func (f *fixture) get(path string, headers ...string) (status int, body []byte, err error) {
	f.t.Helper()
	response, err := f.do(http.MethodGet, path, headers...)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

func (f *fixture) wantStatus(want int, path string, headers ...string) {
	f.t.Helper()
	got, _, err := f.get(path, headers...)
	if err != nil || got != want {
		f.t.Errorf("GET %s = %d, %v; want %d", path, got, err, want)
	}
}

// settled waits until the server is through with all its requests: a client
// can have its answer before the server has written down that it has.
func (f *fixture) settled() upstream.Requests {
	f.t.Helper()
	return f.await("the end of all requests", func(requests upstream.Requests) bool {
		return !slices.ContainsFunc(requests, func(r upstream.Request) bool { return !r.Done })
	})
}

func (f *fixture) await(what string, condition func(upstream.Requests) bool) upstream.Requests {
	f.t.Helper()
	deadline := time.After(bounded)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if requests := f.Requests(); condition(requests) {
			return requests
		}
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatalf("waited too long for %s", what)
		}
	}
}

func (f *fixture) pull(ref string, opts ...remote.Option) (v1.Image, error) {
	f.t.Helper()
	parsed, err := name.ParseReference(f.Host() + "/" + ref)
	if err != nil {
		f.t.Fatal(err)
	}
	return remote.Image(parsed, append(opts, remote.WithTransport(f.client.Transport), remote.WithContext(f.t.Context()))...)
}

func TestPull(t *testing.T) {
	for name, opts := range map[string]upstream.Options{"HTTP": {}, "HTTPS": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			f := start(t, opts)
			pulled, err := f.pull("team/app:1.0")
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(pulled); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClientCertificates(t *testing.T) {
	f, other := start(t, upstream.Options{ClientTLS: true}), start(t, upstream.Options{ClientTLS: true})
	if _, _, err := f.get(f.manifest()); err == nil {
		t.Error("a client without a certificate was served")
	}
	show := func(issuer *fixture) {
		certificate, err := tls.X509KeyPair(clientPEM(t, issuer.Server))
		if err != nil {
			t.Fatal(err)
		}
		f.transport().CloseIdleConnections()
		f.transport().TLSClientConfig.Certificates = []tls.Certificate{certificate}
	}
	show(other)
	if _, _, err := f.get(f.manifest()); err == nil {
		t.Error("a certificate of another CA was accepted")
	}
	if n := len(f.Requests()); n != 0 {
		t.Errorf("%d requests of clients that were turned away are recorded", n)
	}
	show(f)
	f.wantStatus(200, f.manifest())
	if _, _, err := start(t, upstream.Options{TLS: true}).ClientPEM(); err == nil {
		t.Error("a server that asks for no certificate issued one")
	}
}

func clientPEM(t *testing.T, s *upstream.Server) (certificate, key []byte) {
	t.Helper()
	certificate, key, err := s.ClientPEM()
	if err != nil {
		t.Fatal(err)
	}
	return certificate, key
}

func TestPullOfAnIndex(t *testing.T) {
	f := start(t, upstream.Options{})
	arm, err := images.Image(images.Options{Layers: images.Layers("arm", 2, images.KiB), Platform: "linux/arm64"})
	if err != nil {
		t.Fatal(err)
	}
	index, err := images.Index(f.image, arm)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Push("multi", index); err != nil {
		t.Fatal(err)
	}
	pulled, err := f.pull("multi", remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "arm64"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Error(err)
	}
}

func TestLargeBlobsAreStreamed(t *testing.T) {
	f := start(t, upstream.Options{})
	large := images.Layer("large", 256*images.MiB)
	image, err := images.Image(images.Options{Layers: []v1.Layer{large}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Push("large:1", image); err != nil {
		t.Fatal(err)
	}
	digest, err := large.Digest()
	if err != nil {
		t.Fatal(err)
	}
	response, err := f.do(http.MethodGet, "/v2/large/blobs/"+digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := validateStream(response.Body, digest); err != nil {
		t.Error(err)
	}
	if peak := peakMemory(t); peak > 200*images.MiB {
		t.Errorf("the process, which served 256 MiB, grew to %d MiB", peak/images.MiB)
	}
}

func TestARetaggedImageReplacesTheOld(t *testing.T) {
	f := start(t, upstream.Options{})
	_, before, _ := f.get(f.manifest())
	next, err := images.Image(images.Options{Seed: "next"})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Push("team/app:1.0", next); err != nil {
		t.Fatal(err)
	}
	_, after, _ := f.get(f.manifest())
	if want, _ := next.RawManifest(); string(after) != string(want) {
		t.Error("the tag does not point at the image pushed last")
	}
	digest, _ := f.image.Digest()
	if _, old, _ := f.get("/v2/team/app/manifests/" + digest.String()); string(old) != string(before) {
		t.Error("the image pushed first is gone; tags move, content stays")
	}
}

func TestProtocol(t *testing.T) {
	f := start(t, upstream.Options{})
	digest, _ := f.image.Digest()
	raw, _ := f.image.RawManifest()
	size, _ := must(t, f.image)[0].Size()
	for _, test := range []struct {
		method, path, header string
		status               int
		length               int64
		want                 string // header: value
	}{
		{"GET", "/v2/", "", 200, 0, "Docker-Distribution-Api-Version: registry/2.0"},
		{"HEAD", f.manifest(), "", 200, int64(len(raw)), "Docker-Content-Digest: " + digest.String()},
		{"GET", f.manifest(), "Range: bytes=5-", 200, int64(len(raw)), "Content-Type: application/vnd.oci.image.manifest.v1+json"},
		{"HEAD", f.blob(), "", 200, size, "Accept-Ranges: bytes"},
		{"GET", f.blob(), "Range: bytes=1000-", 206, size - 1000, "Docker-Content-Digest: " + f.layer},
		{"GET", f.blob(), "Range: bytes=1000-1999", 206, 1000, "Content-Type: application/octet-stream"},
		{"GET", "/v2/team/app/manifests/2.0", "", 404, -1, ""},
		{"GET", "/v2/other/app/blobs/" + f.layer, "", 404, -1, ""},                 // of another repository
		{"GET", "/v2/team/app/manifests/" + f.layer, "", 404, -1, ""},              // a layer is no manifest
		{"GET", "/v2/team/app/blobs/" + digest.String(), "", 404, -1, ""},          // nor the other way round
		{"GET", "/v2/team/app/tags/list", "", 404, -1, ""},                         // not the pull half
		{"PUT", f.manifest(), "", 405, -1, ""},                                     // read-only
		{"GET", "/v2/team/app/blobs/sha256:short", "", 404, -1, ""},                // not a digest
		{"GET", "/elsewhere", "", 404, -1, "Content-Type: application/json"},       // not a registry's path
		{"GET", f.blob() + "?ns=docker.io", "", 200, size, "Accept-Ranges: bytes"}, // as a mirror is asked
	} {
		response, err := f.do(test.method, test.path, test.header)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Errorf("%s %s: %v", test.method, test.path, err)
		}
		response.Body.Close()
		if response.StatusCode != test.status {
			t.Errorf("%s %s = %d, want %d", test.method, test.path, response.StatusCode, test.status)
		}
		if test.length >= 0 && response.ContentLength != test.length {
			t.Errorf("%s %s: length %d, want %d", test.method, test.path, response.ContentLength, test.length)
		}
		if test.method == "GET" && test.length >= 0 && int64(len(body)) != test.length {
			t.Errorf("%s %s: %d bytes, want %d", test.method, test.path, len(body), test.length)
		}
		if key, value, _ := strings.Cut(test.want, ": "); response.Header.Get(key) != value {
			t.Errorf("%s %s: %s = %q, want %q", test.method, test.path, key, response.Header.Get(key), value)
		}
	}
}

func TestRangeContinuesTheBlob(t *testing.T) {
	f := start(t, upstream.Options{})
	_, whole, _ := f.get(f.blob())
	_, rest, _ := f.get(f.blob(), "Range: bytes=700000-")
	if string(whole[700000:]) != string(rest) {
		t.Error("the range is not the rest of the blob")
	}
}

func TestPushRefusesWhatItCannotServe(t *testing.T) {
	f := start(t, upstream.Options{})
	if err := f.Push("team/layer:1", must(t, f.image)[0]); err == nil {
		t.Error("a layer was pushed as if it were an image")
	}
}

func TestStartTwice(t *testing.T) {
	f := start(t, upstream.Options{})
	if err := f.Start("127.0.0.1:0"); err == nil {
		t.Error("a listening server was started again")
	}
}

func TestBasicCredentials(t *testing.T) {
	f := start(t, upstream.Options{})
	f.Protect("", &upstream.Auth{Users: map[string]string{"ann": "secret"}})
	f.wantStatus(401, f.manifest())
	f.wantStatus(401, "/v2/")
	if _, err := f.pull("team/app:1.0", remote.WithAuth(&authn.Basic{Username: "ann", Password: "wrong"})); err == nil {
		t.Error("a wrong password was accepted")
	}
	if _, err := f.pull("team/app:1.0", remote.WithAuth(&authn.Basic{Username: "ann", Password: "secret"})); err != nil {
		t.Error(err)
	}
	f.Protect("team/app", nil)
	f.wantStatus(200, f.manifest())
	f.Protect("team/app", &upstream.Auth{Users: map[string]string{"bob": "other"}})
	f.wantStatus(401, f.manifest(), "Authorization: Basic YW5uOnNlY3JldA==") // ann
	f.wantStatus(200, f.manifest(), "Authorization: Basic Ym9iOm90aGVy")     // bob
	f.wantStatus(200, "/v2/", "Authorization: Basic YW5uOnNlY3JldA==")
}

func TestBearerCredentials(t *testing.T) {
	f := start(t, upstream.Options{})
	auth := &upstream.Auth{Scheme: upstream.Bearer, Users: map[string]string{"ann": "secret"}, IdentityToken: "identity"}
	f.Protect("", auth)
	for name, test := range map[string]struct {
		auth authn.Authenticator
		ok   bool
	}{
		"password":       {&authn.Basic{Username: "ann", Password: "secret"}, true},
		"wrong password": {&authn.Basic{Username: "ann", Password: "guess"}, false},
		"identity token": {authn.FromConfig(authn.AuthConfig{IdentityToken: "identity"}), true},
		"wrong identity": {authn.FromConfig(authn.AuthConfig{IdentityToken: "guess"}), false},
		"anonymous":      {authn.Anonymous, false},
	} {
		pulled, err := f.pull("team/app:1.0", remote.WithAuth(test.auth))
		if err == nil {
			err = validate.Image(pulled)
		}
		if (err == nil) != test.ok {
			t.Errorf("%s: pull = %v", name, err)
		}
	}
	if n := len(f.Requests().Where(func(r upstream.Request) bool { return r.Kind == upstream.Token })); n < 5 {
		t.Errorf("%d token requests were recorded, want one for each", n)
	}
}

func TestTokensEndWithThePassword(t *testing.T) {
	f := start(t, upstream.Options{})
	f.Protect("", &upstream.Auth{Scheme: upstream.Bearer, Users: map[string]string{"ann": "secret"}})
	_, body, err := f.get("/token?service=upstream&scope=repository:team/app:pull", "Authorization: Basic YW5uOnNlY3JldA==")
	if err != nil {
		t.Fatal(err)
	}
	_, token, _ := strings.Cut(string(body), `"token":"`)
	token, _, _ = strings.Cut(token, `"`)
	f.wantStatus(200, f.manifest(), "Authorization: Bearer "+token)
	f.wantStatus(401, "/v2/team/other/manifests/1.0", "Authorization: Bearer "+token)
	f.Protect("", &upstream.Auth{Scheme: upstream.Bearer, Users: map[string]string{"ann": "rotated"}})
	f.wantStatus(401, f.manifest(), "Authorization: Bearer "+token)
}

func peakMemory(t *testing.T) int64 {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return usage.Maxrss * 1024
}

func validateStream(r io.Reader, want v1.Hash) error {
	got, _, err := v1.SHA256(r)
	if err == nil && got != want {
		err = errors.New("content does not have its digest")
	}
	return err
}

func must(t *testing.T, img v1.Image) []v1.Layer {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return layers
}
