// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Containerd is the Store of a node: one namespace of its containerd. What is
// there is asked of the daemon; the bytes are read from its content folder, as
// Spegel does, since they would otherwise pass through gRPC.
type Containerd struct {
	client *client.Client
	// advertised is since when the mirror advertises what; nil if it advertises
	// all that there is.
	advertised *advertised

	mu   sync.Mutex
	root string // of the content folder, as the daemon reports it
}

var _ Store = &Containerd{}

// NewContainerd connects to the daemon at the socket. The connection is made
// again by itself when the daemon restarts. All that is there is advertised,
// unless Track is to find out what Spegel would.
func NewContainerd(socket, namespace string, tracked bool) (*Containerd, error) {
	c, err := client.New(socket, client.WithDefaultNamespace(namespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	store := &Containerd{client: c}
	if tracked {
		store.advertised = &advertised{}
	}
	return store, nil
}

// Close ends the connection.
func (c *Containerd) Close() error { return c.client.Close() }

// Resolve implements Store.
func (c *Containerd) Resolve(ctx context.Context, name string) (digest.Digest, error) {
	image, err := c.client.ImageService().Get(ctx, name)
	if err != nil {
		return "", translate(err)
	}
	return image.Target.Digest, nil
}

// Open implements Store.
func (c *Containerd) Open(ctx context.Context, dgst digest.Digest) (Content, error) {
	info, err := c.client.ContentStore().Info(ctx, dgst)
	if err != nil {
		return Content{}, translate(err)
	}
	root, err := c.contentRoot(ctx)
	if err != nil {
		return Content{}, err
	}
	file, err := os.Open(filepath.Join(root, "blobs", dgst.Algorithm().String(), dgst.Encoded()))
	if err != nil {
		return Content{}, translate(err)
	}
	content := Content{ReadSeekCloser: file, Digest: dgst, Advertised: info.CreatedAt}
	if c.advertised != nil {
		content.Advertised = c.advertised.since(dgst)
	}
	return content, nil
}

// contentRoot asks the daemon where its content is, and remembers the answer.
func (c *Containerd) contentRoot(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root != "" {
		return c.root, nil
	}
	plugins, err := c.client.IntrospectionService().Plugins(ctx, "type==io.containerd.content.v1")
	if err != nil {
		return "", fmt.Errorf("ask containerd for its content folder: %w", err)
	}
	for _, plugin := range plugins.Plugins {
		if root := plugin.Exports["root"]; root != "" {
			c.root = root
			return root, nil
		}
	}
	return "", errors.New("containerd names no content folder")
}

func translate(err error) error {
	if errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
