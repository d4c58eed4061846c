// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/typeurl/v2"

	"github.com/sluice-dev/sluice/nodeagent"
)

const (
	// pingInterval is the time between two questions whether the daemon is still there.
	pingInterval = 5 * time.Second
	// maxFailedPings is how many questions in a row stay without an answer until the daemon counts
	// as lost. One that is slow for a while is not lost.
	maxFailedPings = 3
)

// Watch implements nodeagent.Runtime.
func (r *Runtime) Watch(ctx context.Context, connected func(), changed func(nodeagent.Change), found func([]nodeagent.Finding)) error {
	if err := r.checkVersion(ctx); err != nil {
		return err
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, errs := r.client.Subscribe(ctx, fmt.Sprintf(`namespace==%q,topic~="^/images/"`, r.Namespace))
	// The subscription was sent before this question. Once the question is answered, no later event
	// is missed.
	if err := r.checkVersion(ctx); err != nil {
		return err
	}
	r.facts.forget()
	r.sweep(ctx)
	connected()
	lost := make(chan error, 1)
	beside.Go(func() { lost <- pingUntilLost(ctx, r.checkVersion) })
	beside.Go(func() { r.relieve(ctx) })
	beside.Go(func() { examineRepeatedly(ctx, r.noticed, r.Examine, found) })
	for {
		select {
		case err := <-lost:
			return err
		case err := <-errs:
			if err == nil {
				err = errors.New("event stream ended")
			}
			return fmt.Errorf("%w: %w", nodeagent.ErrRuntimeUnavailable, err)
		case envelope := <-events:
			event, err := typeurl.UnmarshalAny(envelope.Event)
			if err != nil {
				r.Log.Error(err, "Failed to read event", "topic", envelope.Topic)
				continue
			}
			switch event := event.(type) {
			case *eventtypes.ImageCreate:
				changed(nodeagent.Change{Name: event.Name})
			case *eventtypes.ImageUpdate:
				changed(nodeagent.Change{Name: event.Name})
			case *eventtypes.ImageDelete:
				changed(nodeagent.Change{Name: event.Name, Deleted: true})
			}
		}
	}
}

// pingUntilLost returns when the daemon no longer answers, or ctx ends. The event stream alone does
// not tell: a daemon that hangs leaves it open.
func pingUntilLost(ctx context.Context, ping func(context.Context) error) error {
	for failed := 0; ; {
		if err := sleep(ctx, pingInterval); err != nil {
			return err
		}
		err := ping(ctx)
		if err == nil {
			failed = 0
			continue
		}
		if failed++; failed == maxFailedPings {
			return err
		}
	}
}
