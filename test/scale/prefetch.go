// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/figures"
)

// concurrentHolds is how many nodes are prepared at a time. If all of them were, the API server would
// work on requests that it has to give up, and agents would send them again.
const concurrentHolds = 4

// digestOf is the digest of an image without content.
func digestOf(name string) string { return digest.FromString(name).String() }

// digestIn is the digest that an image is named by.
func digestIn(image v1alpha1.ImageReference) string {
	_, digest, _ := strings.Cut(string(image), "@")
	return digest
}

// newPrefetch is an ImagePrefetch for nodes with a role.
func newPrefetch(name, role string, spec v1alpha1.ImagePrefetchSpec, images ...v1alpha1.ImageReference) *v1alpha1.ImagePrefetch {
	spec.Images, spec.NodeSelector = images, map[string]string{roleLabel: role}
	return &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec}
}

// bring prefetches images to the measured nodes, and waits until they are Ready.
func (r *rig) bring(ctx context.Context, name string, spec v1alpha1.ImagePrefetchSpec, images ...v1alpha1.ImageReference) error {
	r.truth.expect(images)
	prefetch := newPrefetch(name, roleMeasured, spec, images...)
	if err := r.client.Create(ctx, prefetch); err != nil {
		return err
	}
	return r.untilReady(ctx, prefetch)
}

// give brings images that nodes hold from then on.
func (r *rig) give(ctx context.Context, name string, images ...v1alpha1.ImageReference) error {
	err := r.bring(ctx, name, v1alpha1.ImagePrefetchSpec{}, images...)
	if err == nil {
		r.held = append(r.held, images...)
	}
	return err
}

// bringDespiteRestart does the same, and kills the leading controller when half of the nodes are ready.
func (r *rig) bringDespiteRestart(ctx context.Context) error {
	images := tags("restart", 1)
	r.truth.expect(images)
	prefetch := newPrefetch("restart", roleMeasured, v1alpha1.ImagePrefetchSpec{}, images...)
	if err := r.client.Create(ctx, prefetch); err != nil {
		return err
	}
	if err := r.untilNodesReady(ctx, r.opts.nodes/2); err != nil {
		return err
	}
	if err := r.controllers.killLeader(ctx); err != nil {
		return err
	}
	return r.untilReady(ctx, prefetch)
}

// bringMany creates ImagePrefetches of 20 images that the nodes have.
func (r *rig) bringMany(ctx context.Context, count int) error {
	r.truth.expect(nil)
	group, ctx := errgroup.WithContext(ctx)
	for i := range count {
		group.Go(func() error {
			prefetch := newPrefetch(fmt.Sprintf("shared-%03d", i), roleMeasured, v1alpha1.ImagePrefetchSpec{}, r.held[:20]...)
			if err := r.client.Create(ctx, prefetch); err != nil {
				return err
			}
			return r.untilReady(ctx, prefetch)
		})
	}
	return group.Wait()
}

// join adds a node, and waits until it has what the others have.
func (r *rig) join(ctx context.Context) error {
	r.truth.expect(r.held)
	if err := r.addNode(r.lifetime, r.opts.nodes); err != nil {
		return err
	}
	return r.untilNodesReady(ctx, 1)
}

// untilReady watches an ImagePrefetch until it is Ready, and samples how far its status is behind.
func (r *rig) untilReady(ctx context.Context, prefetch *v1alpha1.ImagePrefetch) error {
	const interval = 100 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil { // a watch may end before its time
		watch, err := r.client.Watch(ctx, &v1alpha1.ImagePrefetchList{}, client.InNamespace(prefetch.Namespace),
			client.MatchingFields{"metadata.name": prefetch.Name})
		if err != nil {
			return err
		}
		ready, open := int(prefetch.Status.ReadyNodes), true
		for open {
			select {
			case event, more := <-watch.ResultChan():
				open = more
				if seen, ok := event.Object.(*v1alpha1.ImagePrefetch); ok {
					ready = int(seen.Status.ReadyNodes)
					if isReady(seen) {
						watch.Stop()
						return nil
					}
				}
			case now := <-ticker.C:
				r.samples.add("status_behind", r.truth.behind(ready, now).Seconds())
			}
		}
		watch.Stop()
	}
	return fmt.Errorf("ImagePrefetch %s was not Ready, %d nodes had reported its images: %w", prefetch.Name, r.truth.ready(), context.Cause(ctx))
}

func isReady(p *v1alpha1.ImagePrefetch) bool {
	condition := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	return condition != nil && condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == p.Generation
}

// untilNodesReady waits until so many nodes have reported what is expected.
func (r *rig) untilNodesReady(ctx context.Context, count int) error {
	return r.truth.until(ctx, func() bool { return r.truth.ready() >= count })
}

// hold gives each measured node so many images, if it has fewer: while no controller runs, it writes
// the specs that the controller would end with, under its account. The nodes then find that they
// have the images. A distribution would take the same time again and again, and is measured
// elsewhere. Then the controllers start and see how it is, which is measured.
func (r *rig) hold(ctx context.Context, results *figures.Results, count int) error {
	missing := count - len(r.held)
	if missing <= 0 {
		return nil
	}
	preparing, cancel := context.WithTimeoutCause(ctx, r.opts.bound, fmt.Errorf("it took longer than %v", r.opts.bound))
	defer cancel()
	var images []v1alpha1.ImageReference
	for i := range missing {
		name := fmt.Sprintf("%s/%s/app-%03d", registry, held, len(r.held)+i)
		images = append(images, v1alpha1.ImageReference(name+"@"+digestOf(name)))
	}
	if err := r.controllers.stop(); err != nil {
		return err
	}
	prefetch := newPrefetch(fmt.Sprintf("hold-%d", count), roleMeasured, v1alpha1.ImagePrefetchSpec{}, images...)
	if err := r.client.Create(preparing, prefetch); err != nil {
		return err
	}
	r.truth.expect(images)
	group, waiting := errgroup.WithContext(preparing)
	group.SetLimit(concurrentHolds)
	for _, node := range r.measured {
		group.Go(func() error {
			if err := r.ask(waiting, node, images); err != nil {
				return err
			}
			return r.truth.until(waiting, func() bool { return r.truth.isReady(node.Name) })
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("prepare nodes that hold %d images: %w", count, err)
	}
	r.held = append(r.held, images...)
	prepared, err := r.generations(ctx)
	if err != nil {
		return err
	}
	r.truth.expect(nil) // the nodes reported before there was anybody to know
	if err := r.measure(ctx, results, fmt.Sprintf("start_%d", count), func(ctx context.Context) error {
		return errors.Join(r.controllers.start(ctx), r.untilReady(ctx, prefetch))
	}); err != nil {
		return err
	}
	found, err := r.generations(ctx)
	if err == nil && !maps.Equal(found, prepared) {
		err = errors.New("the controllers have changed what was prepared as if by them")
	}
	return err
}

// generations are those of the measured nodes' specs.
func (r *rig) generations(ctx context.Context) (map[string]int64, error) {
	var sets v1alpha1.NodeImageSetList
	if err := r.client.List(ctx, &sets); err != nil {
		return nil, err
	}
	generations := map[string]int64{}
	for i := range sets.Items {
		if set := &sets.Items[i]; r.probe.node(set.Name) == nil {
			generations[set.Name] = set.Generation
		}
	}
	return generations, nil
}

// ask adds images to what a node is to have.
func (r *rig) ask(ctx context.Context, node metav1.OwnerReference, images []v1alpha1.ImageReference) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // its agent may be writing
		set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
		if err := r.client.Get(ctx, client.ObjectKeyFromObject(set), set); client.IgnoreNotFound(err) != nil {
			return err
		}
		set.OwnerReferences = []metav1.OwnerReference{node}
		set.Spec.NodeName = node.Name
		for _, image := range images {
			set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{
				Name: string(image), Digest: digestIn(image), RegistryPolicy: v1alpha1.RegistryPolicyMirror,
				ImageDownloadRetryLimit: ptr.To(v1alpha1.DefaultImageDownloadRetryLimit), Retention: v1alpha1.RetentionPinned,
			})
		}
		slices.SortFunc(set.Spec.ImageSet, func(a, b v1alpha1.NodeImage) int { return strings.Compare(a.Name, b.Name) })
		if set.ResourceVersion == "" {
			return r.planner.Create(ctx, set)
		}
		return r.planner.Update(ctx, set)
	})
	if err != nil {
		return fmt.Errorf("write NodeImageSet %q: %w", node.Name, err)
	}
	return nil
}
