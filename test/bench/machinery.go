// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

// machinery is a stack, and what the benchmarks do with it.
type machinery struct {
	*stack.Stack
	pushed int
}

// start starts a stack. The caller stops it.
func start(ctx context.Context, opts *options, nodes int, more stack.Options) (*machinery, error) {
	more.Nodes = cluster.Nodes(nodes)
	if opts.verbose {
		more.Logf = tell
	}
	if opts.logs != "" {
		dir, err := os.MkdirTemp(opts.logs, "bench-")
		if err != nil {
			return nil, err
		}
		more.LogDir = dir
		tell("logs are in %s", dir)
	}
	s, err := stack.Start(ctx, more)
	if err != nil {
		return nil, err
	}
	return &machinery{Stack: s}, nil
}

// push puts an image into the upstream registry that shares nothing with those before
// it, and returns its full name. Its layers do not compress.
func (m *machinery) push(layers int, size int64) (string, error) {
	m.pushed++
	ref := fmt.Sprintf("bench/app:v%d", m.pushed)
	image, err := images.Image(images.Options{
		Layers: images.Layers(ref, layers, size/int64(layers)),
		Seed:   ref,
	})
	if err != nil {
		return "", err
	}
	return stack.Registry + "/" + ref, m.prepared(ref, image)
}

// prepared pushes, and has the digests known before a clock runs.
func (m *machinery) prepared(ref string, image v1.Image) error {
	if _, err := image.Digest(); err != nil {
		return err
	}
	return m.Push(ref, image)
}

// bring prefetches the images and returns how long it took until a watching client
// saw that all nodes have them. The prefetch is left in place.
func (m *machinery) bring(ctx context.Context, spec v1alpha1.ImagePrefetchSpec, names ...string) (time.Duration, error) {
	for _, name := range names {
		spec.Images = append(spec.Images, v1alpha1.ImageReference(name))
	}
	p := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "bench-"}, Spec: spec}
	began := time.Now()
	if err := m.Client.Create(ctx, p); err != nil {
		return 0, err
	}
	err := m.untilReady(ctx, p)
	return time.Since(began), err
}

// untilReady watches the prefetch until it is Ready.
func (m *machinery) untilReady(ctx context.Context, p *v1alpha1.ImagePrefetch) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for ctx.Err() == nil { // a watch may end before its time
		watch, err := m.Client.Watch(ctx, &v1alpha1.ImagePrefetchList{},
			client.InNamespace(p.Namespace), client.MatchingFields{"metadata.name": p.Name})
		if err != nil {
			return err
		}
		for event := range watch.ResultChan() {
			if seen, ok := event.Object.(*v1alpha1.ImagePrefetch); ok && isReady(seen) {
				watch.Stop()
				return nil
			}
		}
	}
	return fmt.Errorf("wait for ImagePrefetch %s to be Ready: %w", p.Name, ctx.Err())
}

func isReady(p *v1alpha1.ImagePrefetch) bool {
	condition := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	return condition != nil && condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == p.Generation
}

// How ctr is told to pull: from the registry alone, or from the mirror first.
var (
	plainly     = []string{"--plain-http"}
	fromMirrors = []string{"--hosts-dir", "/etc/containerd/certs.d"}
)

// ctrPull pulls with ctr on all the nodes at once, and returns how long it took until
// the last was through.
func ctrPull(ctx context.Context, nodes []*cluster.Node, name string, how []string) (time.Duration, error) {
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range nodes {
		group.Go(func() error {
			if _, err := node.Ctr(ctx, slices.Concat([]string{"images", "pull"}, how, []string{name})...); err != nil {
				return fmt.Errorf("ctr on %s: %w", node.Name, err)
			}
			return nil
		})
	}
	err := group.Wait()
	return time.Since(began), err
}

// drop deletes all prefetches, and all images but the sandbox's from the nodes, so that
// a run neither finds content nor disk space of the one before.
func (m *machinery) drop(ctx context.Context) error {
	if err := m.Client.DeleteAllOf(ctx, &v1alpha1.ImagePrefetch{}, client.InNamespace("default")); err != nil {
		return err
	}
	if err := m.untilNothingIsWanted(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range m.Cluster.Nodes() {
		group.Go(func() error { return dropImages(ctx, node) })
	}
	err := group.Wait()
	m.Upstream.Reset()
	return err
}

// untilNothingIsWanted waits until the agents are told to want nothing, or they would
// bring back what is deleted.
func (m *machinery) untilNothingIsWanted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		var sets v1alpha1.NodeImageSetList
		if err := m.Client.List(ctx, &sets); err != nil {
			return err
		}
		if !slices.ContainsFunc(sets.Items, func(s v1alpha1.NodeImageSet) bool {
			return len(s.Spec.ImageSet) > 0 || len(s.Status.Images) > 0
		}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for NodeImageSets to be empty: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}
