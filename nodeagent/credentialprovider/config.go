// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	kubeletconfig "k8s.io/kubelet/config/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/internal/keyring"
)

// The versions of the configuration and of the plugins' API. They have the same fields, as far as
// these are used here.
var (
	configVersions = []string{"kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"}
	pluginVersions = []string{
		"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1",
	}
)

// readConfig reads the providers of a file or, in the order of their names, of the files of a folder.
func readConfig(path string) ([]kubeletconfig.CredentialProvider, error) {
	files, err := configFiles(path)
	if err != nil {
		return nil, err
	}
	var providers []kubeletconfig.CredentialProvider
	for _, file := range files {
		found, err := readFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		providers = append(providers, found...)
	}
	return providers, validate(providers)
}

func configFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		if extension := filepath.Ext(entry.Name()); !entry.IsDir() && slices.Contains([]string{".json", ".yaml", ".yml"}, extension) {
			files = append(files, filepath.Join(path, entry.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no .json, .yaml or .yml file is in the folder %s", path)
	}
	return files, nil
}

func readFile(path string) ([]kubeletconfig.CredentialProvider, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var config kubeletconfig.CredentialProviderConfig
	if err := yaml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	if config.Kind != "CredentialProviderConfig" || !slices.Contains(configVersions, config.APIVersion) {
		return nil, fmt.Errorf("kind %q of apiVersion %q must be CredentialProviderConfig of %s",
			config.Kind, config.APIVersion, strings.Join(configVersions, ", "))
	}
	return config.Providers, nil
}

// validate has the kubelet's rules, but for those of what is left out.
func validate(providers []kubeletconfig.CredentialProvider) error {
	if len(providers) == 0 {
		return errors.New("providers must have at least one item")
	}
	var problems []error
	names := map[string]bool{}
	for _, provider := range providers {
		reject := func(bad bool, format string, args ...any) {
			if bad {
				problems = append(problems, fmt.Errorf("provider %q: "+format, append([]any{provider.Name}, args...)...))
			}
		}
		reject(slices.Contains([]string{"", ".", ".."}, provider.Name) || strings.ContainsAny(provider.Name, "/ "),
			"name must be that of a file in the folder of the plugins, without spaces")
		reject(names[provider.Name], "name must be there once")
		names[provider.Name] = true
		reject(!slices.Contains(pluginVersions, provider.APIVersion),
			"apiVersion must be one of %s, not %q", strings.Join(pluginVersions, ", "), provider.APIVersion)
		reject(len(provider.MatchImages) == 0, "matchImages must have at least one item, such as *.azurecr.io")
		for _, pattern := range provider.MatchImages {
			_, err := keyring.ParseMatchImage(pattern)
			reject(err != nil, "matchImages must have items such as *.azurecr.io or registry.io:8080/path, not %q", pattern)
		}
		reject(provider.DefaultCacheDuration == nil || provider.DefaultCacheDuration.Duration < 0, "defaultCacheDuration must be 0s or more, such as 12h")
	}
	return errors.Join(problems...)
}
