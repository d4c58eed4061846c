// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command images builds the container images of Sluice: static binaries on nothing,
// one OCI index per command for all platforms. It needs Go and git, but no
// container engine and no base image.
//
// The same commit gives the same digests, whoever builds it and wherever: paths
// are trimmed, times are the commit's (or SOURCE_DATE_EPOCH), and the Go
// version is the one that go.mod pins.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/pflag"
)

// options are the flags.
type options struct {
	out       string
	push      string
	tar       bool
	version   string
	platforms []string
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.out, "out", "dist/images", "folder to write one OCI layout per image into")
	flags.StringVar(&o.push, "push", "", "registry and namespace to push the images to, such as ghcr.io/sluice-dev; empty pushes nothing")
	flags.BoolVar(&o.tar, "tar", false, "also write OUT/IMAGE.tar, as `ctr images import` takes it")
	flags.StringVar(&o.version, "version", "", "version of the binaries and tag of the images (default: git describe --tags --always --dirty)")
	flags.StringSliceVar(&o.platforms, "platform", []string{"linux/amd64", "linux/arm64"}, "platforms to build for")
}

func main() {
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt) // for good
	var o options
	flags := pflag.NewFlagSet("images", pflag.ContinueOnError)
	o.register(flags)
	err := flags.Parse(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	source, err := describe(ctx, o.version)
	if err != nil {
		return err
	}
	for _, command := range commands {
		built, err := command.build(ctx, source, o.platforms)
		if err != nil {
			return fmt.Errorf("build %s: %w", command.name, err)
		}
		if err := deliver(ctx, o, command, built); err != nil {
			return err
		}
		if err := built.report(ctx, out); err != nil {
			return err
		}
	}
	return nil
}

// deliver writes and pushes what was built.
func deliver(ctx context.Context, o options, command command, built *builtImage) error {
	dir := filepath.Join(o.out, command.name)
	if err := built.writeLayout(dir); err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	if o.tar {
		if err := writeTar(dir, dir+".tar", built.source.date); err != nil {
			return fmt.Errorf("write %s.tar: %w", dir, err)
		}
	}
	if o.push == "" {
		return nil
	}
	to := o.push + "/" + command.name + ":" + built.source.version
	tag, err := name.NewTag(to)
	if err != nil {
		return fmt.Errorf("parse push target: %w", err)
	}
	if err := remote.WriteIndex(tag, built.index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("push %s: %w", to, err)
	}
	return nil
}

// source is the commit that is built.
type source struct {
	dir      string
	version  string
	revision string
	// date is the only time in the images.
	date time.Time
}

// describe asks git about the tree that this runs in.
func describe(ctx context.Context, version string) (source, error) {
	git := func(args ...string) (string, error) {
		command := exec.CommandContext(ctx, "git", args...)
		text, err := command.Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w", args[0], err)
		}
		return strings.TrimSpace(string(text)), nil
	}
	s := source{version: version}
	var err error
	if s.dir, err = git("rev-parse", "--show-toplevel"); err != nil {
		return source{}, err
	}
	if s.revision, err = git("rev-parse", "HEAD"); err != nil {
		return source{}, err
	}
	if s.version == "" {
		if s.version, err = git("describe", "--tags", "--always", "--dirty"); err != nil {
			return source{}, err
		}
	}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		if epoch, err = git("log", "-1", "--format=%ct"); err != nil {
			return source{}, err
		}
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return source{}, fmt.Errorf("parse SOURCE_DATE_EPOCH: %w", err)
	}
	s.date = time.Unix(seconds, 0).UTC()
	return s, nil
}
