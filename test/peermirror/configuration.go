// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const (
	backupFolder  = "_backup"
	defaultFolder = "_default"
)

// WriteConfiguration does what "spegel configuration" does to containerd's
// registry folder (certs.d): a hosts.toml for each registry, given as a URL
// such as "https://docker.io", that names the mirrors and then the registry
// itself. Without registries there is only _default, which names no server.
// Without resolveTags containerd asks the registry what a tag stands for.
// What was in the folder the first time goes to _backup.
func WriteConfiguration(dir string, mirroredRegistries, mirrorTargets []string, resolveTags bool) error {
	files := map[string]string{}
	for _, registry := range mirroredRegistries {
		parsed, err := url.Parse(registry)
		if err != nil || parsed.Host == "" {
			return fmt.Errorf("registry %q is not a URL such as https://docker.io", registry)
		}
		files[parsed.Host] = "server = '" + serverOf(parsed) + "'\n\n" + hosts(mirrorTargets, resolveTags)
	}
	if len(files) == 0 {
		files[defaultFolder] = hosts(mirrorTargets, resolveTags)
	}
	if err := setAside(dir); err != nil {
		return fmt.Errorf("set aside old configuration: %w", err)
	}
	for folder, content := range files {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, folder, "hosts.toml"), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func serverOf(registry *url.URL) string {
	if registry.Host == "docker.io" {
		return "https://registry-1.docker.io"
	}
	return registry.Scheme + "://" + registry.Host
}

func hosts(targets []string, resolveTags bool) string {
	capabilities := "['pull']"
	if resolveTags {
		capabilities = "['pull', 'resolve']"
	}
	sections := make([]string, len(targets))
	for i, target := range targets {
		sections[i] = fmt.Sprintf("[host.'%s']\ncapabilities = %s\ndial_timeout = '200ms'", target, capabilities)
	}
	return strings.Join(sections, "\n\n")
}

// setAside empties the folder. Its content is kept in _backup, unless an
// earlier run has put something there: then it is an earlier run's own.
func setAside(dir string) error {
	backup := filepath.Join(dir, backupFolder)
	err := os.Mkdir(backup, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(backup, 0o755)
	}
	first := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch {
		case entry.Name() == backupFolder:
		case first:
			err = errors.Join(err, os.Rename(path, filepath.Join(backup, entry.Name())))
		default:
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}
