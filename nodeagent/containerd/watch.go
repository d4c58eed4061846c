// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/typeurl/v2"

	"github.com/sluice-dev/sluice/nodeagent"
)

// Watch implements nodeagent.Runtime.
func (r *Runtime) Watch(ctx context.Context, connected func(), changed func(nodeagent.Change)) error {
	if err := r.supported(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, errs := r.client.Subscribe(ctx, fmt.Sprintf(`namespace==%q,topic~="^/images/"`, r.Namespace))
	// The subscription was sent before this question, so once it is answered nothing
	// that happens later is missed.
	if err := r.supported(ctx); err != nil {
		return err
	}
	connected()
	for {
		select {
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
