// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// SeedWatch watches how many nodes may pull each image from the upstream registry at
// a time, by what their NodeImageSets say. It sees every change, in order, except what
// is written between the start of another API server and its own return to it: an API
// server knows no history from before its time.
type SeedWatch struct {
	client client.WithWatch
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	seeds map[string]map[string]bool // images by node
	gone  map[string]bool
	most  map[string]int
	when  map[string]string          // the seeds at the time when there were most
	ever  map[string]map[string]bool // nodes by image
}

// WatchSeeds begins to watch. The caller must call Stop.
func (s *Stack) WatchSeeds(ctx context.Context) (*SeedWatch, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &SeedWatch{
		client: s.Client, cancel: cancel, done: make(chan struct{}),
		gone: map[string]bool{}, most: map[string]int{}, when: map[string]string{}, ever: map[string]map[string]bool{},
	}
	version, err := w.list(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(w.done)
		w.run(ctx, version)
	}()
	return w, nil
}

// Stop ends the watch.
func (w *SeedWatch) Stop() {
	w.cancel()
	<-w.done
}

// Gone records that a node has left for good. Its NodeImageSet stays until Kubernetes removes it,
// and no longer counts.
func (w *SeedWatch) Gone(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone[node] = true
	delete(w.seeds, node)
}

// Most is the largest number of nodes that were seeds of an image at a time, by image.
func (w *SeedWatch) Most() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.most)
}

// When says which nodes were the seeds of an image when there were most of them.
func (w *SeedWatch) When(image string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.when[image]
}

// Ever are the nodes that have been seeds of any of these images, sorted.
func (w *SeedWatch) Ever(images ...string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := map[string]bool{}
	for _, image := range images {
		maps.Copy(nodes, w.ever[image])
	}
	return slices.Sorted(maps.Keys(nodes))
}

func (w *SeedWatch) run(ctx context.Context, version string) {
	const pause = 20 * time.Millisecond
	for ctx.Err() == nil {
		version = w.follow(ctx, version)
		if version == "" {
			version, _ = w.list(ctx) // while the API server is away, again
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// list takes in how things are.
func (w *SeedWatch) list(ctx context.Context) (version string, err error) {
	var sets v1alpha1.NodeImageSetList
	if err := w.client.List(ctx, &sets); err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seeds = map[string]map[string]bool{}
	for i := range sets.Items {
		w.note(&sets.Items[i])
	}
	w.count()
	return sets.ResourceVersion, nil
}

// follow takes in changes until the watch breaks, and returns how far it came; empty
// when the API server does not know that version any more.
func (w *SeedWatch) follow(ctx context.Context, version string) string {
	if version == "" {
		return ""
	}
	changes, err := w.client.Watch(ctx, &v1alpha1.NodeImageSetList{}, &client.ListOptions{
		Raw: &metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true},
	})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return ""
		}
		return version
	}
	defer changes.Stop()
	for change := range changes.ResultChan() {
		set, ok := change.Object.(*v1alpha1.NodeImageSet)
		if !ok || change.Type == watch.Error {
			return ""
		}
		version = set.ResourceVersion
		if change.Type == watch.Bookmark {
			continue
		}
		w.mu.Lock()
		if change.Type == watch.Deleted {
			delete(w.seeds, set.Name)
		} else {
			w.note(set)
		}
		w.count()
		w.mu.Unlock()
	}
	return version
}

func (w *SeedWatch) note(set *v1alpha1.NodeImageSet) {
	delete(w.seeds, set.Name)
	if w.gone[set.Name] {
		return
	}
	images := map[string]bool{}
	for _, image := range set.Spec.ImageSet {
		images[image.Name] = image.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	}
	w.seeds[set.Name] = images
}

func (w *SeedWatch) count() {
	seeds := map[string][]string{}
	for node, images := range w.seeds {
		for image, seed := range images {
			if seed {
				seeds[image] = append(seeds[image], node)
			}
		}
	}
	for image, nodes := range seeds {
		if w.ever[image] == nil {
			w.ever[image] = map[string]bool{}
		}
		for _, node := range nodes {
			w.ever[image][node] = true
		}
		if len(nodes) > w.most[image] {
			w.most[image] = len(nodes)
			w.when[image] = fmt.Sprintf("%s at %s", strings.Join(nodes, ", "), time.Now().Format("15:04:05.000"))
		}
	}
}
