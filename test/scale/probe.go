// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

// probeInterval is the least time between two of its distributions.
const probeInterval = time.Second

// probe brings an image to two nodes of its own, again and again, and measures how soon the others see
// what it writes: a watch of all NodeImageSets, the second node that the first has resolved the tag,
// and the watcher of the ImagePrefetch that the last node has the image. Its nodes answer at once.
type probe struct {
	rig     *rig
	nodes   [2]*probeNode
	specs   chan *v1alpha1.NodeImageSet // of its nodes
	reports chan *v1alpha1.NodeImageSet // of its nodes, as the watch of all sees them
	cycles  atomic.Int64
}

// probeNode is one of its nodes, as its agent would know it.
type probeNode struct {
	name   string
	writer nodeagent.StatusWriter
	spec   *v1alpha1.NodeImageSet // the newest
	state  v1alpha1.ImageState    // of whatever image it is to have
}

func newProbe(ctx context.Context, r *rig) (*probe, error) {
	p := &probe{rig: r, specs: make(chan *v1alpha1.NodeImageSet, 16), reports: make(chan *v1alpha1.NodeImageSet, 1024)}
	for i := range p.nodes {
		node, err := r.register(ctx, fmt.Sprintf("probe-%d.example.internal", i), i, roleProbe)
		if err != nil {
			return nil, err
		}
		if p.nodes[i], err = p.connect(ctx, node); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *probe) connect(ctx context.Context, node *corev1.Node) (*probeNode, error) {
	sets, writer, err := p.rig.connect(ctx, node)
	if err != nil {
		return nil, err
	}
	return &probeNode{name: node.Name, writer: writer}, p.rig.follow(ctx, sets, func(set *v1alpha1.NodeImageSet) {
		select {
		case p.specs <- set:
		case <-ctx.Done():
		}
	})
}

// begin runs the probe until the rig ends. What fails is told, and tried again.
func (p *probe) begin() {
	ctx := p.rig.lifetime
	p.rig.running.Go(func() { p.watchAll(ctx) })
	p.rig.running.Go(func() {
		ticker := time.NewTicker(probeInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if err := p.cycle(ctx); err != nil && ctx.Err() == nil {
				tell("probe: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
	})
}

// watchAll passes on the NodeImageSets of its nodes, from among all.
func (p *probe) watchAll(ctx context.Context) {
	for ctx.Err() == nil {
		watch, err := p.rig.client.Watch(ctx, &v1alpha1.NodeImageSetList{})
		if err != nil {
			continue
		}
		for event := range watch.ResultChan() {
			set, ok := event.Object.(*v1alpha1.NodeImageSet)
			if !ok || p.node(set.Name) == nil {
				continue
			}
			select {
			case p.reports <- set:
			default: // nobody waits: it is the past
			}
		}
	}
}

func (p *probe) node(name string) *probeNode {
	for _, node := range p.nodes {
		if node.name == name {
			return node
		}
	}
	return nil
}

// cycle brings one image.
func (p *probe) cycle(ctx context.Context) error {
	number := p.cycles.Add(1)
	image := v1alpha1.ImageReference(fmt.Sprintf("%s/probe/app:v%d", registry, number))
	for _, node := range p.nodes {
		node.state = v1alpha1.ImagePending
	}
	prefetch := newPrefetch(fmt.Sprintf("probe-%d", number), roleProbe, v1alpha1.ImagePrefetchSpec{}, image)
	if err := p.rig.client.Create(ctx, prefetch); err != nil {
		return err
	}
	err := p.distribute(ctx, prefetch, string(image))
	return p.clear(ctx, prefetch, err)
}

func (p *probe) distribute(ctx context.Context, prefetch *v1alpha1.ImagePrefetch, image string) error {
	seed, err := p.untilAsked(ctx, func(node *probeNode) bool { return node.entry(image) != nil })
	if err != nil {
		return err
	}
	seed.state = v1alpha1.ImagePulling
	if err := seed.report(ctx); err != nil {
		return err
	}
	resolvedAt := time.Now()
	peer, err := p.untilAsked(ctx, func(node *probeNode) bool { return node != seed && node.entry(image) != nil })
	if err != nil {
		return err
	}
	p.rig.samples.add("admitted_after", milliseconds(time.Since(resolvedAt)))

	ready, err := p.rig.client.Watch(ctx, &v1alpha1.ImagePrefetchList{}, client.InNamespace(prefetch.Namespace),
		client.MatchingFields{"metadata.name": prefetch.Name})
	if err != nil {
		return err
	}
	defer ready.Stop()
	seed.state = v1alpha1.ImagePresent
	if err := seed.report(ctx); err != nil {
		return err
	}
	for len(p.reports) > 0 {
		<-p.reports
	}
	peer.state = v1alpha1.ImagePresent
	if err := peer.report(ctx); err != nil {
		return err
	}
	presentAt, lagged := time.Now(), false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case set := <-p.specs:
			if err := p.answer(ctx, set); err != nil {
				return err
			}
		case set := <-p.reports:
			if !lagged && set.Name == peer.name && hasReported(set, image) {
				lagged = true
				p.rig.samples.add("watch_lag", milliseconds(time.Since(presentAt)))
			}
		case event, open := <-ready.ResultChan():
			if !open {
				return fmt.Errorf("the watch of %s ended", prefetch.Name)
			}
			if seen, ok := event.Object.(*v1alpha1.ImagePrefetch); ok && isReady(seen) {
				p.rig.samples.add("ready_after", milliseconds(time.Since(presentAt)))
				if !lagged {
					return p.untilLagged(ctx, peer, image, presentAt)
				}
				return nil
			}
		}
	}
}

// untilLagged waits for the watch of all, which may be later than the controller's.
func (p *probe) untilLagged(ctx context.Context, peer *probeNode, image string, presentAt time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case set := <-p.reports:
			if set.Name == peer.name && hasReported(set, image) {
				p.rig.samples.add("watch_lag", milliseconds(time.Since(presentAt)))
				return nil
			}
		}
	}
}

// hasReported reports whether a node says that it has an image.
func hasReported(set *v1alpha1.NodeImageSet, image string) bool {
	for _, status := range set.Status.Images {
		if status.Name == image && status.State == v1alpha1.ImagePresent {
			return true
		}
	}
	return false
}

// clear deletes the ImagePrefetch, and waits until its nodes are to have nothing.
func (p *probe) clear(ctx context.Context, prefetch *v1alpha1.ImagePrefetch, err error) error {
	if err := p.rig.client.Delete(ctx, prefetch); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	for _, node := range p.nodes {
		for len(node.spec.Spec.ImageSet) > 0 {
			if err := p.next(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// untilAsked answers specs until one of its nodes is as wanted.
func (p *probe) untilAsked(ctx context.Context, wanted func(*probeNode) bool) (*probeNode, error) {
	for {
		for _, node := range p.nodes {
			if wanted(node) {
				return node, nil
			}
		}
		if err := p.next(ctx); err != nil {
			return nil, err
		}
	}
}

// next takes up the next spec.
func (p *probe) next(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case set := <-p.specs:
		return p.answer(ctx, set)
	}
}

// answer takes up a spec, and says so.
func (p *probe) answer(ctx context.Context, set *v1alpha1.NodeImageSet) error {
	node := p.node(set.Name)
	node.spec = set
	return node.report(ctx)
}

// entry is what the node is to have under a name; nil if it is not to have it.
func (n *probeNode) entry(image string) *v1alpha1.NodeImage {
	if n.spec == nil {
		return nil
	}
	for i := range n.spec.Spec.ImageSet {
		if n.spec.Spec.ImageSet[i].Name == image {
			return &n.spec.Spec.ImageSet[i]
		}
	}
	return nil
}

// report writes how far the node is.
func (n *probeNode) report(ctx context.Context) error {
	status := v1alpha1.NodeImageSetStatus{ObservedGeneration: n.spec.Generation}
	for _, entry := range n.spec.Spec.ImageSet {
		image := v1alpha1.NodeImageStatus{Name: entry.Name, State: n.state}
		if n.state != v1alpha1.ImagePending {
			image.Digest, image.Request = digestOf(entry.Name), entry.Request
			image.SizeBytes, image.Source, image.Attempts = imageSize, source(entry.RegistryPolicy), 1
		}
		status.Images = append(status.Images, image)
	}
	return n.writer.WriteStatus(ctx, n.spec.UID, status)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
