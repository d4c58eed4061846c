// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// home is where the released images are; the chart names them so.
const home = "ghcr.io/sluice-dev"

// builtImage is an index and what was measured of it.
type builtImage struct {
	command  command
	source   source
	index    v1.ImageIndex
	variants []variant
}

type variant struct {
	platform   v1.Platform
	binary     []byte
	compressed int64
}

// file is one regular file of a layer. Its path has no leading slash.
type file struct {
	path    string
	content []byte
	mode    int64
}

// newLayer packs the folders and then the files, all owned by root and with the same date.
func newLayer(files []file, date time.Time) (v1.Layer, error) {
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	var buffer bytes.Buffer
	archive := tar.NewWriter(&buffer)
	made := map[string]bool{".": true}
	for _, f := range files {
		if err := writeFolders(archive, path.Dir(f.path), made, date); err != nil {
			return nil, err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Size: int64(len(f.content)), ModTime: date}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithMediaType(types.OCILayer))
}

func writeFolders(archive *tar.Writer, dir string, made map[string]bool, date time.Time) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := writeFolders(archive, path.Dir(dir), made, date); err != nil {
		return err
	}
	return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: date})
}

func compressedSize(image v1.Image) (size int64, err error) {
	layers, err := image.Layers()
	if err != nil {
		return 0, err
	}
	for _, layer := range layers {
		n, err := layer.Size()
		if err != nil {
			return 0, err
		}
		size += n
	}
	return size, nil
}

// writeLayout replaces dir by an OCI image layout that has the index under its name, both as the
// specification and as containerd writes it.
func (i *builtImage) writeLayout(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	written, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	reference := home + "/" + i.command.name + ":" + i.source.version
	return written.AppendIndex(i.index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          reference,
		"org.opencontainers.image.ref.name": i.source.version,
	}))
}

// writeTar packs a layout. Folders are read in the order of their names, so that the
// archive is as reproducible as what is in it.
func writeTar(dir, to string, date time.Time) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
	}()
	archive := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(relative), Mode: 0o644, Size: int64(len(content)), ModTime: date}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err = archive.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	return archive.Close()
}

// report prints one line for the image and one for each platform.
func (i *builtImage) report(ctx context.Context, out io.Writer) error {
	digest, err := i.index.Digest()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s/%s:%s@%s\n", home, i.command.name, i.source.version, digest)
	for _, v := range i.variants {
		line := fmt.Sprintf("  %-12s  binary %5.1f MiB  image %5.1f MiB", v.platform, mebibytes(len(v.binary)), mebibytes(int(v.compressed)))
		if v.platform.OS == runtime.GOOS && v.platform.Architecture == runtime.GOARCH {
			took, err := startupTime(ctx, v.binary)
			if err != nil {
				return err
			}
			line += fmt.Sprintf("  start-up %d ms", took.Milliseconds())
		}
		fmt.Fprintln(out, line)
	}
	return nil
}

func mebibytes(n int) float64 { return float64(n) / (1 << 20) }

// startupTime is how long the program takes from its start to the end of
// --help: loading, and the initialization of every package that it links.
// The median of a few runs.
func startupTime(ctx context.Context, binary []byte) (time.Duration, error) {
	dir, err := os.MkdirTemp("", "sluice-startup-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		return 0, err
	}
	const runs = 5
	took := make([]time.Duration, runs)
	for i := range took {
		began := time.Now()
		if output, err := exec.CommandContext(ctx, program, "--help").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("run with --help: %w\n%s", err, output)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[runs/2], nil
}
