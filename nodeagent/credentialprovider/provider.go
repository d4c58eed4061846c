// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	kubeletconfig "k8s.io/kubelet/config/v1"
	credentialproviderv1 "k8s.io/kubelet/pkg/apis/credentialprovider/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/internal/keyring"
)

var errNeedsToken = errors.New("left out, because it needs a token of the Pod's service account")

// provider is one item of the configuration.
type provider struct {
	name            string
	matchImages     []keyring.Location
	plugin          *plugin // nil if the provider is left out
	defaultDuration time.Duration
	cache           cache
	silent          silent
}

// silent is a plugin that gave no answer in time, and the error that said so.
type silent struct {
	mu    sync.Mutex
	err   error
	until time.Time
}

func (s *silent) get() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().After(s.until) {
		return nil
	}
	return s.err
}

func (s *silent) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.until = err, time.Now().Add(silence)
}

// newProvider makes a provider of a valid item.
func newProvider(config kubeletconfig.CredentialProvider, binDir string, log logr.Logger) (*provider, error) {
	p := &provider{name: config.Name, defaultDuration: config.DefaultCacheDuration.Duration}
	for _, pattern := range config.MatchImages {
		location, err := keyring.ParseMatchImage(pattern)
		if err != nil {
			return nil, err
		}
		p.matchImages = append(p.matchImages, location)
	}
	if config.TokenAttributes != nil {
		return p, nil
	}
	path, err := exec.LookPath(filepath.Join(binDir, config.Name))
	if err != nil {
		return nil, err
	}
	p.plugin = &plugin{path: path, args: config.Args, apiVersion: config.APIVersion, timeout: timeout, log: log.WithValues("provider", config.Name)}
	for _, variable := range config.Env {
		p.plugin.env = append(p.plugin.env, variable.Name+"="+variable.Value)
	}
	return p, nil
}

func (p *provider) matches(image imageref.Reference) bool {
	return slices.ContainsFunc(p.matchImages, func(l keyring.Location) bool { return l.Covers(image) })
}

// credentials returns the answer for an image, by the names of its entries.
func (p *provider) credentials(ctx context.Context, image imageref.Reference) (map[string]credentialapi.Credential, error) {
	if p.plugin == nil {
		return nil, errNeedsToken
	}
	if known, ok := p.cache.get(image); ok {
		return known, nil
	}
	if err := p.silent.get(); err != nil {
		return nil, err
	}
	response, err := p.plugin.run(ctx, image.Repository())
	if errors.Is(err, errNoAnswer) {
		p.silent.note(err)
	}
	if err != nil {
		return nil, err
	}
	key, err := cacheKey(response.CacheKeyType, image)
	if err != nil {
		return nil, err
	}
	entries := map[string]credentialapi.Credential{}
	for name, auth := range response.Auth {
		entries[name] = credentialapi.Credential{Username: auth.Username, Password: auth.Password}
	}
	duration := p.defaultDuration
	if response.CacheDuration != nil {
		duration = response.CacheDuration.Duration
	}
	if duration > 0 {
		p.cache.put(key, entries, duration)
	}
	return entries, nil
}

// cacheKey is what an answer is kept under.
func cacheKey(kind credentialproviderv1.PluginCacheKeyType, image imageref.Reference) (string, error) {
	switch kind {
	case credentialproviderv1.ImagePluginCacheKeyType:
		return image.Repository(), nil
	case credentialproviderv1.RegistryPluginCacheKeyType:
		return image.Domain(), nil
	case credentialproviderv1.GlobalPluginCacheKeyType:
		return globalKey, nil
	default:
		return "", errors.New("cacheKeyType of its answer must be Image, Registry or Global")
	}
}
