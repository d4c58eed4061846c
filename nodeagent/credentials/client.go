// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credentials asks the controller's credential endpoint for the credentials of images that
// this node is to pull. It keeps no state: each call reads the agent's token from its file, which the
// kubelet renews, and the controller's CA, and makes its own connection. That is cheap enough, since
// there is one call for each pull from the upstream.
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
	"github.com/sluice-dev/sluice/internal/objectkey"
	"github.com/sluice-dev/sluice/nodeagent"
)

// timeout is for a whole request. The endpoint's own timeout is shorter.
const timeout = 30 * time.Second

// maxErrorBytes is enough for every error of the endpoint.
const maxErrorBytes = 4 << 10

// Options are where the endpoint is, and how the agent and the endpoint prove who they are.
type Options struct {
	// URL is that of the controller, https://HOST[:PORT]. If it is empty, there is no endpoint, and
	// every pull is anonymous.
	URL string
	// TokenFile has a token of the agent's service account for the endpoint's audience.
	TokenFile string
	// CAConfigMap is NAMESPACE/NAME of the ConfigMap that has the certificates which sign the
	// endpoint's. If it is empty, they are those of the system.
	CAConfigMap string
}

// Validate returns an error that names each option that is missing or malformed.
func (o Options) Validate() error {
	if o.URL == "" {
		return nil
	}
	var problems []error
	// The token and the credentials must not be sent in the clear. The error does not quote the
	// URL, since it may have a password.
	if u, err := url.Parse(o.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		problems = append(problems, errors.New("--credentials-url must be https://HOST or https://HOST:PORT"))
	}
	if o.TokenFile == "" {
		problems = append(problems, errors.New("--credentials-token-file must be set: the endpoint answers nobody without a token"))
	}
	if o.CAConfigMap != "" {
		if _, err := objectkey.Parse(o.CAConfigMap); err != nil {
			problems = append(problems, fmt.Errorf("--credentials-ca-configmap %w", err))
		}
	}
	return errors.Join(problems...)
}

// CA returns the certificates, in PEM, that sign the endpoint's certificate.
type CA func(ctx context.Context) ([]byte, error)

// Client is a nodeagent.Credentials.
type Client struct {
	options Options
	ca      CA
}

// New returns a client of the endpoint. Without a CA it trusts those of the system.
func New(o Options, ca CA) *Client { return &Client{options: o, ca: ca} }

// For returns the credentials for an image of the node's NodeImageSet, in the order to try them.
// Its errors wrap nodeagent.ErrCredentialsDenied if the endpoint denies them, and otherwise
// nodeagent.ErrCredentialsUnavailable. They contain neither token nor credentials.
func (c *Client) For(ctx context.Context, image string) ([]nodeagent.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	request, err := c.request(ctx, image)
	if err != nil {
		return nil, unavailable(err)
	}
	transport, err := c.transport(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport,
		// The token is for the endpoint alone, so no redirect is followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, unavailable(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, responseError(response)
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

func (c *Client) transport(ctx context.Context) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.ca != nil {
		certificates, err := c.ca(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the endpoint's CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(certificates) {
			return nil, fmt.Errorf("read the endpoint's CA: no certificate in ConfigMap %s", c.options.CAConfigMap)
		}
	}
	// The endpoint is in the cluster, so the node's proxy is not for it.
	return &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, Proxy: nil}, nil
}

func decode(body io.Reader) ([]nodeagent.Credential, error) {
	content, err := io.ReadAll(io.LimitReader(body, credentialapi.MaxResponseBytes))
	if err != nil {
		return nil, unavailable(fmt.Errorf("read answer: %w", err))
	}
	var answer credentialapi.Response
	// The decoder's error may quote the credentials, so it is left out.
	if json.Unmarshal(content, &answer) != nil {
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

// responseError is the error for a status other than 200. It quotes the message of Sluice's
// endpoint alone: another server's body may contain the token.
func responseError(response *http.Response) error {
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
