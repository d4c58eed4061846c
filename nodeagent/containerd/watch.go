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
	// askPause is how often the daemon is asked whether it is still there.
	askPause = 5 * time.Second
	// maxUnanswered is how many questions in a row it may leave without an answer: one
	// that is slow for a while is not lost.
	maxUnanswered = 3
)

// Watch implements nodeagent.Runtime.
func (r *Runtime) Watch(ctx context.Context, connected func(), changed func(nodeagent.Change)) error {
	if err := r.supported(ctx); err != nil {
		return err
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, errs := r.client.Subscribe(ctx, fmt.Sprintf(`namespace==%q,topic~="^/images/"`, r.Namespace))
	// The subscription was sent before this question, so once it is answered nothing
	// that happens later is missed.
	if err := r.supported(ctx); err != nil {
		return err
	}
	connected()
	lost := make(chan error, 1)
	asking.Go(func() { lost <- silence(ctx, r.supported) })
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

// silence returns when the daemon answers no more, or ctx ends. A daemon that hangs
// leaves the event stream open.
func silence(ctx context.Context, ask func(context.Context) error) error {
	for unanswered := 0; ; {
		if err := pause(ctx, askPause); err != nil {
			return err
		}
		err := ask(ctx)
		if err == nil {
			unanswered = 0
			continue
		}
		if unanswered++; unanswered == maxUnanswered {
			return err
		}
	}
}
