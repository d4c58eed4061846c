// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/nodeagent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ nodeagent.Credentials = (*Client)(nil)

const image = "ghcr.io/shop/app:v1"

func TestTheClientAsksForOneImageWithItsToken(t *testing.T) {
	client := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		var request credentialapi.Request
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Image != image {
			t.Errorf("asked for %q, err %v", request.Image, err)
		}
		if r.Method != http.MethodPost || r.URL.Path != credentialapi.Path || r.Header.Get("Authorization") != "Bearer first" {
			t.Errorf("%s %s with %q", r.Method, r.URL.Path, r.Header.Get("Authorization"))
		}
		answer(w, http.StatusOK, credentialapi.Response{Credentials: []credentialapi.Credential{
			{Username: "robot", Password: "p4ssw0rd"}, {IdentityToken: "refresh"},
		}})
	})
	got, err := client.For(t.Context(), image)
	want := []nodeagent.Credential{{Username: "robot", Password: "p4ssw0rd"}, {IdentityToken: "refresh"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d credentials, err %v; want those of the endpoint in their order", len(got), err)
	}
}

func TestTheClientReadsItsTokenForEachRequest(t *testing.T) {
	var seen []string
	client := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization"))
		answer(w, http.StatusOK, credentialapi.Response{})
	})
	ask(t, client)
	write(t, client.options.TokenFile, "second\n")
	ask(t, client)
	if want := []string{"Bearer first", "Bearer second"}; !slices.Equal(seen, want) {
		t.Errorf("sent %q, want %q", seen, want)
	}
}

func TestTheClientReadsItsCAForEachRequest(t *testing.T) {
	client := newClient(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, credentialapi.Response{}) })
	good := client.ca

	client.ca = published(otherCA(t))
	if _, err := client.For(t.Context(), image); !errors.Is(err, nodeagent.ErrCredentialsUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("err = %v, want one about the certificate", err)
	}
	client.ca = good
	ask(t, client)
	client.ca = published(otherCA(t) + publishedBy(t, good))
	ask(t, client)
}

func TestTheErrorSaysWhichKindOfFailureItIs(t *testing.T) {
	deny := func(status int, reason credentialapi.Reason) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			answer(w, status, credentialapi.Error{Reason: reason, Message: "said the endpoint"})
		}
	}
	for _, tt := range []struct {
		reason   string
		handler  http.HandlerFunc
		prepare  func(*testing.T, *Client)
		want     error
		wantText string
	}{
		{"a token that it does not take", deny(401, credentialapi.ReasonUnauthorized), nil, nodeagent.ErrCredentialsDenied, "said the endpoint (401 Unauthorized)"},
		{"an image that is not needed", deny(403, credentialapi.ReasonNotNeeded), nil, nodeagent.ErrCredentialsDenied, "said the endpoint (403 NotNeeded)"},
		{"an image that is not wanted", deny(404, credentialapi.ReasonNotWanted), nil, nodeagent.ErrCredentialsDenied, "said the endpoint (404 NotWanted)"},
		{"too many requests", deny(429, credentialapi.ReasonTooManyRequests), nil, nodeagent.ErrCredentialsUnavailable, "429"},
		{"an API server in trouble", deny(503, credentialapi.ReasonUnavailable), nil, nodeagent.ErrCredentialsUnavailable, "503"},
		{
			"another server than the endpoint", func(w http.ResponseWriter, r *http.Request) {
				http.Error(w, "You sent "+r.Header.Get("Authorization"), http.StatusForbidden)
			}, nil, nodeagent.ErrCredentialsDenied, "status 403",
		},
		{
			"an answer that is not JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"credentials": "p4ssw0rd"}`) },
			nil, nodeagent.ErrCredentialsUnavailable, "not JSON",
		},
		{
			"an answer without end", func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, `{"credentials": [{"password": "`+strings.Repeat("p4ssw0rd", credentialapi.MaxResponseBytes)+`"}]}`)
			}, nil, nodeagent.ErrCredentialsUnavailable, "too large",
		},
		{
			"no token file yet", deny(401, credentialapi.ReasonUnauthorized), func(t *testing.T, c *Client) {
				if err := os.Remove(c.options.TokenFile); err != nil {
					t.Fatal(err)
				}
			}, nodeagent.ErrCredentialsUnavailable, "read token",
		},
		{
			"a token that cannot be a header", deny(401, credentialapi.ReasonUnauthorized), func(t *testing.T, c *Client) {
				write(t, c.options.TokenFile, "fir\nst")
			}, nodeagent.ErrCredentialsUnavailable, "header",
		},
		{
			"no CA yet", deny(401, credentialapi.ReasonUnauthorized), func(_ *testing.T, c *Client) {
				c.ca = func(context.Context) ([]byte, error) { return nil, errors.New("not found") }
			}, nodeagent.ErrCredentialsUnavailable, "read the endpoint's CA: not found",
		},
		{
			"an empty CA", deny(401, credentialapi.ReasonUnauthorized), func(_ *testing.T, c *Client) { c.ca = published("") },
			nodeagent.ErrCredentialsUnavailable, "no certificate in ConfigMap sluice-system/ca",
		},
		{
			"no endpoint there", deny(401, credentialapi.ReasonUnauthorized), func(_ *testing.T, c *Client) {
				c.options.URL = "https://127.0.0.1:1"
			}, nodeagent.ErrCredentialsUnavailable, "refused",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			client := newClient(t, tt.handler)
			if tt.prepare != nil {
				tt.prepare(t, client)
			}
			found, err := client.For(t.Context(), image)
			if len(found) != 0 {
				t.Errorf("%d credentials", len(found))
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.wantText) {
				t.Errorf("err = %v, want %q that says %q", err, tt.want, tt.wantText)
			}
			for _, secret := range []string{"first", "fir\nst", "p4ssw0rd"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error contains %q: %v", secret, err)
				}
			}
		})
	}
}

func TestTheClientFollowsNoRedirect(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s with %q", r.Method, r.URL, r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	client := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	if _, err := client.For(t.Context(), image); !errors.Is(err, nodeagent.ErrCredentialsDenied) {
		t.Errorf("err = %v", err)
	}
}

func TestTheClientStopsWithItsContext(t *testing.T) {
	for _, tt := range []struct{ reason, sent string }{
		{"before an answer", ""},
		{"within an answer", `{"credentials":[`},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			client := newClient(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // otherwise net/http does not notice that the client goes
				if tt.sent != "" {
					_, _ = io.WriteString(w, tt.sent)
					_ = http.NewResponseController(w).Flush()
				}
				cancel()
				<-r.Context().Done()
				// To return would be to answer, and a client that is just closing may still read that.
				panic(http.ErrAbortHandler)
			})
			if _, err := client.For(ctx, image); !errors.Is(err, context.Canceled) || !errors.Is(err, nodeagent.ErrCredentialsUnavailable) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestTheClientSaysThatAnAnswerWasCutOff(t *testing.T) {
	client := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"credentials":[`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	_, err := client.For(t.Context(), image)
	if !errors.Is(err, nodeagent.ErrCredentialsUnavailable) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("err = %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		reason  string
		options Options
		want    string
	}{
		{"as it should be", Options{URL: "https://sluice.sluice-system.svc:9444", TokenFile: "/token", CAConfigMap: "sluice-system/ca"}, ""},
		{"a slash at the end", Options{URL: "https://sluice.sluice-system.svc/", TokenFile: "/token"}, ""},
		{"no endpoint needs nothing", Options{}, ""},
		{"in the clear", Options{URL: "http://sluice", TokenFile: "/token"}, "https://HOST"},
		{"no scheme", Options{URL: "sluice:9444", TokenFile: "/token"}, "https://HOST"},
		{"no host", Options{URL: "https://", TokenFile: "/token"}, "https://HOST"},
		{"a path", Options{URL: "https://sluice/v1/credentials", TokenFile: "/token"}, "https://HOST"},
		{"a password in the URL", Options{URL: "https://me:p4ssw0rd@sluice", TokenFile: "/token"}, "https://HOST"},
		{"no token", Options{URL: "https://sluice"}, "--credentials-token-file"},
		{"a ConfigMap of no namespace", Options{URL: "https://sluice", TokenFile: "/token", CAConfigMap: "ca"}, `--credentials-ca-configmap must be NAMESPACE/NAME, not "ca"`},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			err := tt.options.Validate()
			if tt.want == "" && err != nil {
				t.Errorf("not valid: %v", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "p4ssw0rd")) {
				t.Errorf("err = %v, want one that says %q", err, tt.want)
			}
		})
	}
}

// newClient returns a client of an endpoint that answers with handler. Its token is "first".
func newClient(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	options := Options{URL: server.URL, TokenFile: filepath.Join(t.TempDir(), "token"), CAConfigMap: "sluice-system/ca"}
	write(t, options.TokenFile, "first\n")
	if err := options.Validate(); err != nil {
		t.Fatal(err)
	}
	return New(options, published(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))))
}

// published is a CA that is there.
func published(text string) CA {
	return func(context.Context) ([]byte, error) { return []byte(text), nil }
}

func publishedBy(t *testing.T, ca CA) string {
	t.Helper()
	text, err := ca(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// otherCA is a certificate that has not signed the server's.
func otherCA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func ask(t *testing.T, client *Client) {
	t.Helper()
	if _, err := client.For(t.Context(), image); err != nil {
		t.Fatal(err)
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
