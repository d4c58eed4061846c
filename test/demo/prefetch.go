// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	sampleFile = "config/samples/imageprefetch.yaml"
	sampleName = "app"
)

// prefetch applies the sample and shows what becomes of it until it is Ready.
func (s *show) prefetch(ctx context.Context) error {
	fmt.Print("\n== A tenant asks for images\n\n")
	if err := s.kubectl(ctx, "apply", "-f", sampleFile); err != nil {
		return err
	}
	fmt.Println()
	began := time.Now()
	if err := s.follow(ctx, began); err != nil {
		return err
	}
	fmt.Printf("\nReady after %.1f s.\n\n", time.Since(began).Seconds())
	if err := s.kubectl(ctx, "get", "imageprefetches"); err != nil {
		return err
	}
	return s.onEveryNode(ctx, sampleImages...)
}

// follow draws the table at each change, and returns when the sample is Ready.
func (s *show) follow(ctx context.Context, began time.Time) error {
	prefetches, err := s.client.Watch(ctx, &v1alpha1.ImagePrefetchList{}, client.InNamespace("default"))
	if err != nil {
		return err
	}
	defer prefetches.Stop()
	sets, err := s.client.Watch(ctx, &v1alpha1.NodeImageSetList{})
	if err != nil {
		return err
	}
	defer sets.Stop()
	table := newTable(began)
	for {
		var event watch.Event
		var open bool
		select {
		case event, open = <-prefetches.ResultChan():
		case event, open = <-sets.ResultChan():
		case <-ctx.Done():
			return fmt.Errorf("the ImagePrefetch did not become Ready: %w", ctx.Err())
		}
		if !open {
			return errors.New("the API server ended the watch")
		}
		switch object := event.Object.(type) {
		case *v1alpha1.NodeImageSet:
			table.update(object)
		case *v1alpha1.ImagePrefetch:
			// Equal in generation, so that the answer is to what was applied.
			ready := meta.FindStatusCondition(object.Status.Conditions, v1alpha1.ConditionReady)
			if object.Name == sampleName && ready != nil && ready.Status == "True" && ready.ObservedGeneration == object.Generation {
				return s.finish(ctx, table)
			}
		}
	}
}

// finish draws the table a last time, from what the nodes say now: the watch of
// the nodes may lag behind that of the prefetch.
func (s *show) finish(ctx context.Context, table *table) error {
	var sets v1alpha1.NodeImageSetList
	if err := s.client.List(ctx, &sets); err != nil {
		return err
	}
	for i := range sets.Items {
		table.update(&sets.Items[i])
	}
	return table.complete(len(s.Nodes))
}
