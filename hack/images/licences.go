// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
)

// licenceName is how the files are called that must go with a binary.
var licenceName = regexp.MustCompile(`(?i)^(licen[cs]e|notice|copying|copyright|patents)([.-].*)?$`)

// licences are Sluice's own licence and those of every module that is linked into
// the binary, as most of them ask for.
func licences(ctx context.Context, dir string, info *debug.BuildInfo) ([]file, error) {
	own, err := os.ReadFile(filepath.Join(dir, "LICENSE"))
	if err != nil {
		return nil, err
	}
	files := []file{{path: "licenses/LICENSE", content: own, mode: 0o644}}
	dirs, err := moduleDirs(ctx, dir, info.Deps)
	if err != nil {
		return nil, err
	}
	for _, module := range info.Deps {
		entries, err := os.ReadDir(dirs[module.Path])
		if err != nil {
			return nil, fmt.Errorf("find licence of %s: %w", module.Path, err)
		}
		for _, entry := range entries {
			if entry.IsDir() || !licenceName.MatchString(entry.Name()) {
				continue
			}
			content, err := os.ReadFile(filepath.Join(dirs[module.Path], entry.Name()))
			if err != nil {
				return nil, err
			}
			files = append(files, file{path: path.Join("licenses", module.Path, entry.Name()), content: content, mode: 0o644})
		}
	}
	return files, nil
}

// moduleDirs maps the path of each module to where its source lies.
func moduleDirs(ctx context.Context, dir string, modules []*debug.Module) (map[string]string, error) {
	args := []string{"list", "-m", "-json"}
	for _, module := range modules {
		args = append(args, module.Path)
	}
	list := exec.CommandContext(ctx, "go", args...)
	list.Dir = dir
	list.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	output, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	dirs := make(map[string]string, len(modules))
	for decoder := json.NewDecoder(strings.NewReader(string(output))); ; {
		var module struct{ Path, Dir string }
		if err := decoder.Decode(&module); errors.Is(err, io.EOF) {
			return dirs, nil
		} else if err != nil {
			return nil, fmt.Errorf("list modules: %w", err)
		}
		dirs[module.Path] = module.Dir
	}
}
