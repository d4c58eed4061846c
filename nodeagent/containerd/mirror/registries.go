// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Default is the directory for all registries that have none of their own.
const Default = "_default"

// withPort is the directory of a registry with a port: "registry_5000_".
var withPort = regexp.MustCompile(`^(.+)_(\d+)_$`)

// Registries returns the registries that have a directory below one of the roots, and Default if it is
// there, sorted.
func (c Config) Registries() ([]string, error) {
	found := map[string]bool{}
	for _, root := range c.Roots {
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read %q: %w", root, err)
		}
		for _, entry := range entries {
			// A directory may be a link. Spegel keeps what it replaces in "_backup".
			info, err := os.Stat(filepath.Join(root, entry.Name()))
			if err != nil || !info.IsDir() || strings.HasPrefix(entry.Name(), "_") && entry.Name() != Default {
				continue
			}
			found[withPort.ReplaceAllString(entry.Name(), "$1:$2")] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}
