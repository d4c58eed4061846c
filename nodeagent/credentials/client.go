// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credentials asks the controller for the registry credentials of the images
// that this node shall pull. It keeps nothing: each call reads the agent's token and the
// controller's CA from their files, which the kubelet renews, and makes a connection of
// its own. There is one call per pull from upstream, so that is cheap.
package credentials

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/nodeagent"
)

// timeout is for a whole request; the endpoint gives itself less.
const timeout = 30 * time.Second

// maxErrorBytes is enough for every refusal of the endpoint.
const maxErrorBytes = 4 << 10

// Options say where the endpoint is and who asks.
type Options struct {
	// URL of the controller, https://HOST[:PORT]. Empty: there is no endpoint, and
	// every pull is anonymous.
	URL string
	// TokenFile holds a token of the agent's service account for the endpoint's audience.
	TokenFile string
	// CAFile holds the certificates, PEM, that the endpoint's certificate is checked
	// against. Empty: those of the system.
	CAFile string
}

// Validate says what is missing or malformed.
func (o Options) Validate() error {
	if o.URL == "" {
		return nil
	}
	var problems []error
	// The token and the credentials must not pass in the clear. The URL is not
	// quoted: who puts a password in a URL does not want to see it in a log.
	if u, err := url.Parse(o.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		problems = append(problems, errors.New("--credentials-url: not https://HOST or https://HOST:PORT"))
	}
	if o.TokenFile == "" {
		problems = append(problems, errors.New("--credentials-token-file: required: the endpoint answers nobody without a token"))
	}
	return errors.Join(problems...)
}

// Client is a nodeagent.Credentials.
type Client struct{ options Options }

// New returns a client of the endpoint.
func New(o Options) *Client { return &Client{options: o} }

// For returns the credentials for an image of the node's NodeImageSet, in the order to
// try them. Its errors wrap nodeagent.ErrCredentialsUnavailable, or ErrCredentialsRefused
// where the endpoint has answered; they contain neither token nor credentials.
func (c *Client) For(ctx context.Context, image string) ([]nodeagent.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	request, err := c.request(ctx, image)
	if err != nil {
		return nil, unavailable(err)
	}
	transport, err := c.transport()
	if err != nil {
		return nil, unavailable(err)
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport,
		// The token is for the endpoint alone, wherever that might point to.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, unavailable(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, refused(response)
	}
	return decode(response.Body)
}

func (c *Client) request(ctx context.Context, image string) (*http.Request, error) {
	token, err := os.ReadFile(c.options.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	body, err := json.Marshal(credentialapi.Request{Image: image})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.options.URL, "/")+credentialapi.Path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	return request, nil
}

func (c *Client) transport() (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.options.CAFile != "" {
		certificates, err := os.ReadFile(c.options.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(certificates) {
			return nil, fmt.Errorf("read CA: no certificate in %s", c.options.CAFile)
		}
	}
	// No proxy: the endpoint is in the cluster, whatever the node's proxy is for.
	return &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, Proxy: nil}, nil
}

func decode(body io.Reader) ([]nodeagent.Credential, error) {
	var answer credentialapi.Response
	// The error of the decoder may quote what it read, which is credentials.
	if json.NewDecoder(io.LimitReader(body, credentialapi.MaxResponseBytes)).Decode(&answer) != nil {
		return nil, unavailable(errors.New("the answer is not JSON, or too large"))
	}
	found := make([]nodeagent.Credential, 0, len(answer.Credentials))
	for _, c := range answer.Credentials {
		found = append(found, nodeagent.Credential(c))
	}
	return found, nil
}

func unavailable(err error) error {
	return fmt.Errorf("%w: %w", nodeagent.ErrCredentialsUnavailable, err)
}

// refused is the error for an answer other than 200. Its message is taken over from
// an endpoint of ours only: anything else may be anything.
func refused(response *http.Response) error {
	kind := nodeagent.ErrCredentialsDenied
	if response.StatusCode == http.StatusTooManyRequests || response.StatusCode >= 500 {
		kind = nodeagent.ErrCredentialsUnavailable
	}
	var answer credentialapi.Error
	if json.NewDecoder(io.LimitReader(response.Body, maxErrorBytes)).Decode(&answer) == nil && answer.Reason != "" {
		return fmt.Errorf("%w: %s (%d %s)", kind, answer.Message, response.StatusCode, answer.Reason)
	}
	return fmt.Errorf("%w: status %d", kind, response.StatusCode)
}
