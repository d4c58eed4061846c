// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	containerdevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/typeurl/v2"

	"github.com/sluice-dev/sluice/test/cluster"
)

// heard changes an image record until an event of the change arrives. Then the subscription is
// established.
func heard(ctx context.Context, c *client.Client, told <-chan *containerdevents.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	store := c.ImageService()
	for mark := 0; ; mark++ {
		pause, err := store.Get(ctx, cluster.PauseImage)
		if err != nil {
			return err
		}
		pause.Labels = map[string]string{"bench.sluice.test/mark": strconv.Itoa(mark)}
		if _, err := store.Update(ctx, pause, "labels.bench.sluice.test/mark"); err != nil {
			return err
		}
		select {
		case <-told:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func connect(node *cluster.Node) (*client.Client, error) {
	c, err := client.New(node.ContainerdSocket, client.WithDefaultNamespace("k8s.io"))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd of %s: %w", node.Name, err)
	}
	return c, nil
}

func dropImages(ctx context.Context, node *cluster.Node) error {
	c, err := connect(node)
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.ImageService().List(ctx)
	if err != nil {
		return err
	}
	var pause string
	for _, image := range list {
		if image.Name == cluster.PauseImage {
			pause = image.Target.Digest.String()
		}
	}
	for i, image := range list {
		if image.Target.Digest.String() == pause {
			continue
		}
		var opts []images.DeleteOpt
		if i == len(list)-1 {
			opts = append(opts, images.SynchronousDelete())
		}
		err = errors.Join(err, c.ImageService().Delete(ctx, image.Name, opts...))
	}
	return err
}

// occurrence is something that containerd told.
type occurrence struct {
	node *cluster.Node
	at   time.Time
	// name of an image record that was made or changed, digest of committed content, or key
	// of a committed snapshot.
	name, digest, snapshot string
}

// listen returns the events of the nodes' containerds from now on. The channel is never full.
func listen(ctx context.Context, nodes []*cluster.Node) (_ <-chan occurrence, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan occurrence, 1<<16)
	closers := []func(){cancel}
	stop = func() {
		for _, c := range closers {
			c()
		}
	}
	for _, node := range nodes {
		c, err := connect(node)
		if err != nil {
			stop()
			return nil, nil, err
		}
		closers = append(closers, func() { _ = c.Close() })
		told, errs := c.Subscribe(ctx, `topic=="/images/create"`, `topic=="/images/update"`, `topic=="/content/create"`, `topic=="/snapshot/commit"`)
		if err := heard(ctx, c, told); err != nil {
			stop()
			return nil, nil, fmt.Errorf("subscribe to events of %s: %w", node.Name, err)
		}
		go func() {
			for {
				select {
				case <-errs: //nolint:errcheck // the stream has ended, which the figure does not need to explain
					return
				case envelope := <-told:
					o := occurrence{node: node, at: time.Now()}
					event, err := typeurl.UnmarshalAny(envelope.Event)
					if err != nil {
						continue
					}
					switch event := event.(type) {
					case *events.ImageCreate:
						o.name = event.Name
					case *events.ImageUpdate:
						o.name = event.Name
					case *events.ContentCreate:
						o.digest = event.Digest
					case *events.SnapshotCommit:
						o.snapshot = event.Key
					}
					out <- o
				}
			}
		}()
	}
	return out, stop, nil
}

// quiet is how long no event arrives once all have arrived.
const quiet = 500 * time.Millisecond

// gather reads events until none arrives for that long.
func gather(ctx context.Context, told <-chan occurrence) (all []occurrence) {
	for {
		select {
		case o := <-told:
			all = append(all, o)
		case <-ctx.Done():
			return all
		case <-time.After(quiet):
			return all
		}
	}
}

// complete returns, from the events of a node, when it had the image: its record and its last
// snapshot. Later changes of the record are changes of its labels.
func complete(all []occurrence, name string) (time.Time, error) {
	var record, snapshot time.Time
	for _, o := range all {
		switch {
		case o.snapshot != "":
			snapshot = later(snapshot, o.at)
		case o.name == name && record.IsZero():
			record = o.at
		}
	}
	if record.IsZero() || snapshot.IsZero() {
		return time.Time{}, fmt.Errorf("containerd did not tell of all that belongs to %s", name)
	}
	return later(record, snapshot), nil
}
