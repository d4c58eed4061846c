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
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// certificateSecret has the controllers' serving certificate, and caConfigMap its CA, which they publish.
const (
	certificateSecret = "sluice-controller-tls"
	caConfigMap       = "sluice-controller-ca"
)

// certify makes the Secret with a serving certificate for the controllers, which is its own CA.
func (s *Stack) certify(ctx context.Context) error {
	endpoint, err := s.credentialEndpoint(0)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return err
	}
	serving, err := admission.NewCertificate(net.ParseIP(host))
	if err != nil {
		return err
	}
	s.ca = serving.Text
	return s.Client.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: certificateSecret},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{"tls.crt": serving.Text, "tls.key": serving.Key, "ca.crt": serving.Text},
	})
}

// credentialFlags have a controller serve the endpoint.
func (s *Stack) credentialFlags(controller int) ([]string, error) {
	endpoint, err := s.credentialEndpoint(controller)
	return []string{"--credentials-bind-address=" + endpoint, "--certificate-secret=" + Namespace + "/" + certificateSecret}, err
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
		"--credentials-ca-configmap=" + Namespace + "/" + caConfigMap,
		"--credentials-token-file=" + file,
	}, nil
}
