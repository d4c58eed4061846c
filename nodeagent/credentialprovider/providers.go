// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-logr/logr"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/internal/keyring"
	"github.com/sluice-dev/sluice/nodeagent"
)

// Providers are the credential providers of the node. They are a nodeagent.NodeCredentials.
type Providers []*provider

// New reads the configuration, and looks for the plugins. Like the kubelet it does so once.
func New(o Options, log logr.Logger) (Providers, error) {
	configured, err := readConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("read credential provider config: %w", err)
	}
	var providers Providers
	for _, config := range configured {
		made, err := newProvider(config, o.BinDir, log)
		if err != nil {
			return nil, fmt.Errorf("find credential provider %q: %w", config.Name, err)
		}
		if made.plugin == nil {
			log.Info("Left out credential provider that needs tokens of service accounts", "provider", config.Name)
		}
		providers = append(providers, made)
	}
	return providers, nil
}

// For returns the credentials of all providers that are for the image, the most specific first; for
// the same location in the order of the configuration. Its error names the providers that failed.
func (p Providers) For(ctx context.Context, image string) ([]nodeagent.Credential, error) {
	ref, err := imageref.Parse(image)
	if err != nil {
		return nil, err
	}
	var answers []map[string]credentialapi.Credential
	var failures []error
	for _, provider := range p {
		if !provider.matches(ref) {
			continue
		}
		answer, err := provider.credentials(ctx, ref)
		if err != nil {
			failures = append(failures, fmt.Errorf("credential provider %q: %w", provider.name, err))
			continue
		}
		answers = append(answers, answer)
	}
	var found []nodeagent.Credential
	for _, credential := range keyring.FromAnswers(answers).Lookup(ref) {
		found = append(found, nodeagent.Credential(credential))
	}
	return found, errors.Join(failures...)
}
