// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/test/admission"
	"github.com/sluice-dev/sluice/test/cluster"
)

// firstCredentialsPort is where the first controller gives agents the credentials
// of registries. Where Sluice is installed a Service stands before all controllers;
// here the agents ask the first one.
const firstCredentialsPort = 9444

// credentialEndpoint is HOST:PORT of the endpoint of a controller.
func (s *Stack) credentialEndpoint(controller int) (string, error) {
	apiServer, err := url.Parse(s.config.Host)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(apiServer.Hostname(), strconv.Itoa(firstCredentialsPort+controller)), nil
}

// certDir is the folder with the controllers' serving certificate.
func (s *Stack) certDir() string { return filepath.Join(s.Cluster.Dir, "sluice-tls") }

// certify writes a serving certificate for the controllers, which is its own CA,
// and returns it.
func (s *Stack) certify() ([]byte, error) {
	endpoint, err := s.credentialEndpoint(0)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.certDir(), 0o700); err != nil {
		return nil, err
	}
	return admission.WriteCertificate(s.certDir(), net.ParseIP(host))
}

// credentialFlags have a controller serve the endpoint.
func (s *Stack) credentialFlags(controller int) ([]string, error) {
	endpoint, err := s.credentialEndpoint(controller)
	return []string{"--credentials-bind-address=" + endpoint, "--cert-dir=" + s.certDir()}, err
}

// agentCredentialFlags have a node's agent ask the endpoint, with a token as the
// kubelet would project it.
func (s *Stack) agentCredentialFlags(ctx context.Context, node *cluster.Node, bound *authenticationv1.BoundObjectReference) ([]string, error) {
	endpoint, err := s.credentialEndpoint(0)
	if err != nil {
		return nil, err
	}
	token, err := s.token(ctx, "sluice-agent", bound, credentialapi.Audience)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(node.Dir, "sluice-agent.token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return nil, fmt.Errorf("write the agent's token: %w", err)
	}
	return []string{
		"--credentials-url=https://" + endpoint,
		"--credentials-ca-file=" + filepath.Join(s.certDir(), "tls.crt"),
		"--credentials-token-file=" + file,
	}, nil
}
