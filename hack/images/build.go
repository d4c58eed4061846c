// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// command is a main package of which an image is made.
type command struct {
	name        string
	description string
	// user is "UID:GID".
	user string
}

var commands = []command{
	{
		name:        "sluice-controller",
		description: "Controllers and admission webhooks of Sluice, which holds a rollout until its images are on the nodes",
		user:        "65532:65532",
	},
	{
		name:        "sluice-agent",
		description: "Node agent of Sluice, which brings images into a node's containerd",
		// containerd's socket belongs to root, and only root may connect to it.
		user: "0:0",
	},
}

// build compiles the command for each platform and makes an index of the images.
func (c command) build(ctx context.Context, source source, platforms []string) (*builtImage, error) {
	labels := c.labels(source)
	built := &builtImage{command: c, source: source}
	annotated := mutate.Annotations(empty.Index, labels).(v1.ImageIndex)
	for _, text := range slices.Sorted(slices.Values(platforms)) {
		platform, err := v1.ParsePlatform(text)
		if err != nil {
			return nil, fmt.Errorf("parse platform: %w", err)
		}
		binary, err := compile(ctx, source, c.name, *platform)
		if err != nil {
			return nil, err
		}
		made, err := c.assemble(ctx, source, *platform, binary)
		if err != nil {
			return nil, err
		}
		annotated = mutate.AppendManifests(annotated, mutate.IndexAddendum{
			Add:        made,
			Descriptor: v1.Descriptor{Platform: platform, MediaType: types.OCIManifestSchema1},
		})
		size, err := compressedSize(made)
		if err != nil {
			return nil, err
		}
		built.variants = append(built.variants, variant{platform: *platform, binary: binary, compressed: size})
	}
	built.index = annotated
	return built, nil
}

// compile builds one static binary and returns its content. It leaves out the environment's
// settings for Go, because they would change the digest.
func compile(ctx context.Context, source source, name string, platform v1.Platform) ([]byte, error) {
	dir, err := os.MkdirTemp("", "sluice-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, name)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w -buildid= -X main.version="+source.version, "-o", path, "./cmd/"+name)
	build.Dir = source.dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+platform.OS, "GOARCH="+platform.Architecture,
		"GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off")
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile for %s: %w\n%s", platform, err, output)
	}
	return os.ReadFile(path)
}

// assemble makes the image of one platform: a layer with the licences and the bill
// of materials, and one with the binary.
func (c command) assemble(ctx context.Context, source source, platform v1.Platform, binary []byte) (v1.Image, error) {
	info, err := buildinfo.Read(strings.NewReader(string(binary)))
	if err != nil {
		return nil, fmt.Errorf("read build information: %w", err)
	}
	papers, err := licences(ctx, source.dir, info)
	if err != nil {
		return nil, err
	}
	materials, err := billOfMaterials(c.name, source, platform, binary, info)
	if err != nil {
		return nil, err
	}
	papers = append(papers, file{path: "usr/share/sbom/" + c.name + ".spdx.json", content: materials, mode: 0o644})

	made := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, content := range []struct {
		comment string
		files   []file
	}{
		{"licences and bill of materials", papers},
		{"binary", []file{{path: c.name, content: binary, mode: 0o755}}},
	} {
		layer, err := newLayer(content.files, source.date)
		if err != nil {
			return nil, err
		}
		made, err = mutate.Append(made, mutate.Addendum{
			Layer:   layer,
			History: v1.History{Created: v1.Time{Time: source.date}, CreatedBy: "hack/images", Comment: content.comment},
		})
		if err != nil {
			return nil, err
		}
	}
	config, err := made.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	config.Created = v1.Time{Time: source.date}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + c.name},
		User:       c.user,
		WorkingDir: "/",
		Labels:     c.labels(source),
	}
	if made, err = mutate.ConfigFile(made, config); err != nil {
		return nil, err
	}
	return mutate.Annotations(made, c.labels(source)).(v1.Image), nil
}

// labels are the predefined annotation keys of the OCI image specification.
func (c command) labels(source source) map[string]string {
	const repository = "https://github.com/sluice-dev/sluice"
	return map[string]string{
		"org.opencontainers.image.title":         c.name,
		"org.opencontainers.image.description":   c.description,
		"org.opencontainers.image.authors":       "The Sluice Authors",
		"org.opencontainers.image.vendor":        "Sluice",
		"org.opencontainers.image.licenses":      "Apache-2.0",
		"org.opencontainers.image.url":           repository,
		"org.opencontainers.image.source":        repository,
		"org.opencontainers.image.documentation": repository + "/tree/main/docs",
		"org.opencontainers.image.version":       source.version,
		"org.opencontainers.image.revision":      source.revision,
		"org.opencontainers.image.created":       source.date.Format("2006-01-02T15:04:05Z"),
	}
}
