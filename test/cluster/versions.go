// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
)

// Version is that of a program that the tests run.
type Version struct {
	Program, Version string
	// Module is the folder of the module that pins it, below the repository's root.
	Module string
}

// SpegelVersion is the version that Spegel was run in, by hand: no module of ours pins it.
const SpegelVersion = "v0.7.4"

// pinned are the programs whose version says what Sluice was tried with.
var pinned = []struct {
	program, module string
	set             set
}{
	{"Kubernetes", "k8s.io/kubernetes", kubernetesSet},
	{"etcd", "go.etcd.io/etcd/server/v3", kubernetesSet},
	{"containerd", "github.com/containerd/containerd/v2", containerdSet},
	{"runc", "github.com/opencontainers/runc", runcSet},
	{"cert-manager", "github.com/cert-manager/cert-manager", certManagerSet},
	{"Helm", "helm.sh/helm/v3", helmSet},
	{"Distribution, the registry", "github.com/distribution/distribution/v3", registrySet},
}

// Versions are those of the programs that are built for tests.
func Versions(ctx context.Context) ([]Version, error) {
	source, err := sourceDir()
	if err != nil {
		return nil, err
	}
	var versions []Version
	for _, p := range pinned {
		version, err := required(ctx, filepath.Join(source, p.set.dir), p.module)
		if err != nil {
			return nil, err
		}
		versions = append(versions, Version{Program: p.program, Version: version, Module: path.Join("test/cluster", p.set.dir)})
	}
	return versions, nil
}

// required is the version of a module that the go.mod in a folder requires.
func required(ctx context.Context, dir, module string) (string, error) {
	edit := exec.CommandContext(ctx, "go", "mod", "edit", "-json")
	edit.Dir = dir
	out, err := edit.Output()
	if err != nil {
		return "", fmt.Errorf("read go.mod in %s: %w", dir, err)
	}
	var file struct {
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal(out, &file); err != nil {
		return "", fmt.Errorf("decode go.mod in %s: %w", dir, err)
	}
	for _, r := range file.Require {
		if r.Path == module {
			return r.Version, nil
		}
	}
	return "", fmt.Errorf("go.mod in %s does not require %s", dir, module)
}
