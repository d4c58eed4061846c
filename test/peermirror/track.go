// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
)

// advertised is since when a mirror has told its peers of each blob. Spegel
// takes back what is deleted; here the store no longer finds it.
type advertised struct {
	mu    sync.Mutex
	blobs map[digest.Digest]time.Time
}

func (a *advertised) add(d digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.blobs == nil {
		a.blobs = map[digest.Digest]time.Time{}
	}
	if _, known := a.blobs[d]; !known {
		a.blobs[d] = time.Now()
	}
}

func (a *advertised) since(d digest.Digest) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.blobs[d]
}

// Track advertises what Spegel does (v0.7.4): of what is there at the beginning,
// and of what is created later, the blobs with a label of their source. For each
// creation it looks for the label ten times within 650 ms, and never again. One
// after the other: a blob without a label delays those that come after it.
//
// It returns when ctx ends, and with an error when containerd does: Spegel ends
// then.
func (c *Containerd) Track(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, errs := c.client.Subscribe(ctx, `topic=="/content/create"`)
	// Once this is answered the daemon has the subscription.
	if _, err := c.client.Version(ctx); err != nil {
		return ended(ctx, err)
	}
	err := c.client.ContentStore().Walk(ctx, func(info content.Info) error {
		if hasSource(info) {
			c.advertised.add(info.Digest)
		}
		return nil
	})
	if err != nil {
		return ended(ctx, err)
	}
	for {
		select {
		case err := <-errs:
			return ended(ctx, err)
		case envelope := <-events:
			event, err := typeurl.UnmarshalAny(envelope.Event)
			if err != nil {
				return fmt.Errorf("read event: %w", err)
			}
			created, ok := event.(*eventtypes.ContentCreate)
			if !ok {
				continue
			}
			if err := c.look(ctx, digest.Digest(created.Digest)); err != nil {
				return ended(ctx, err)
			}
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("no reason given")
	}
	return fmt.Errorf("follow containerd's content: %w", err)
}

// look advertises a blob once it has a label, if that comes in time.
func (c *Containerd) look(ctx context.Context, d digest.Digest) error {
	const tries, longest = 10, 100 * time.Millisecond
	delay := 10 * time.Millisecond
	for try := range tries {
		if try > 0 {
			wait(ctx, delay)
			delay = min(2*delay, longest)
		}
		info, err := c.client.ContentStore().Info(ctx, d)
		if errdefs.IsNotFound(err) {
			return nil // gone, or of another namespace
		}
		if err != nil {
			return err
		}
		if hasSource(info) {
			c.advertised.add(d)
			return nil
		}
	}
	return nil
}

func hasSource(info content.Info) bool {
	for label := range info.Labels {
		if strings.HasPrefix(label, labels.LabelDistributionSource+".") {
			return true
		}
	}
	return false
}
