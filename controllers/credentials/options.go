// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

// Options are where the endpoint listens, and whom it answers.
type Options struct {
	// BindAddress is HOST:PORT or :PORT. If it is empty, there is no endpoint, and images that
	// need credentials cannot be prefetched.
	BindAddress string
	// Audience is the one that a token must be issued for.
	Audience string
	// AgentServiceAccount is NAMESPACE/NAME of the only service account that gets an answer.
	AgentServiceAccount string
}

// Validate returns an error that names each option that is missing or malformed.
func (o Options) Validate() error {
	if o.BindAddress == "" {
		return nil
	}
	var problems []error
	if _, _, err := net.SplitHostPort(o.BindAddress); err != nil {
		problems = append(problems, fmt.Errorf("--credentials-bind-address must be HOST:PORT or :PORT: %w", err))
	}
	if o.Audience == "" {
		problems = append(problems, fmt.Errorf("--credentials-audience must be set; the usual one is %s", credentialapi.Audience))
	}
	namespace, name, ok := strings.Cut(o.AgentServiceAccount, "/")
	if !ok || len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		problems = append(problems, fmt.Errorf("--agent-service-account must be NAMESPACE/NAME, not %q", o.AgentServiceAccount))
	}
	return errors.Join(problems...)
}

// agentUsername is the agents' username in the API server.
func (o Options) agentUsername() string {
	return "system:serviceaccount:" + strings.Replace(o.AgentServiceAccount, "/", ":", 1)
}
