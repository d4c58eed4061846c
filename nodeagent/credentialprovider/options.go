// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Options say where the kubelet's configuration and the plugins are. Both are empty or neither is.
type Options struct {
	// Config is a file with a CredentialProviderConfig, or a folder of such files.
	Config string
	// BinDir is the folder of the plugins.
	BinDir string
}

// Enabled reports whether there are plugins to run.
func (o Options) Enabled() bool { return o.Config != "" }

// Validate returns an error that names each option that is missing or malformed.
func (o Options) Validate() error {
	if o.Config == "" && o.BinDir == "" {
		return nil
	}
	if o.Config == "" || o.BinDir == "" {
		return errors.New("--image-credential-provider-config and --image-credential-provider-bin-dir must be set both, or neither")
	}
	var problems []error
	if !filepath.IsAbs(o.Config) {
		problems = append(problems, fmt.Errorf("--image-credential-provider-config must be an absolute path, not %q", o.Config))
	}
	if !filepath.IsAbs(o.BinDir) {
		problems = append(problems, fmt.Errorf("--image-credential-provider-bin-dir must be an absolute path, not %q", o.BinDir))
	}
	return errors.Join(problems...)
}
