// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// truth knows which nodes have reported all images that are being brought, and since when the
// ImagePrefetch could say so.
type truth struct {
	mu      sync.Mutex
	images  map[string]bool
	nodes   map[string]bool
	readyAt []time.Time // in this order nodes became ready
	changed chan struct{}
}

func newTruth() *truth { return &truth{changed: make(chan struct{})} }

// expect begins anew with other images.
func (t *truth) expect(images []v1alpha1.ImageReference) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.images, t.nodes, t.readyAt = map[string]bool{}, map[string]bool{}, nil
	for _, image := range images {
		t.images[string(image)] = true
	}
}

// record takes up what a node has reported.
func (t *truth) record(node string, reported []v1alpha1.NodeImageStatus, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	has := 0
	for _, image := range reported {
		if image.State == v1alpha1.ImagePresent && t.images[image.Name] {
			has++
		}
	}
	if t.nodes[node] || has == 0 || has < len(t.images) {
		return
	}
	t.nodes[node] = true
	t.readyAt = append(t.readyAt, now)
	close(t.changed)
	t.changed = make(chan struct{})
}

// ready is how many nodes are.
func (t *truth) ready() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.readyAt)
}

// isReady reports whether a node is.
func (t *truth) isReady(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.nodes[node]
}

// until waits until a condition is met, which it asks for whenever one more node is ready.
func (t *truth) until(ctx context.Context, met func() bool) error {
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if met() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d nodes have reported their images: %w", t.ready(), context.Cause(ctx))
		case <-changed:
		}
	}
}

// behind is for how long a count of ready nodes has been wrong.
func (t *truth) behind(count int, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if count >= len(t.readyAt) {
		return 0
	}
	return now.Sub(t.readyAt[count])
}
