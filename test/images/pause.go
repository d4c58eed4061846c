// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const pausePackage = "github.com/sluice-dev/sluice/test/images/cmd/pause"

// Pause builds the pause program and returns an image that runs it: as the
// sandbox image of a containerd, and as an image for Pods that only have to
// run. Further layers go below the program.
func Pause(ctx context.Context, below ...v1.Layer) (v1.Image, error) {
	dir, err := os.MkdirTemp("", "pause-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "pause")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", binary, pausePackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", pausePackage, err, out)
	}
	return Runnable(binary, below...)
}
