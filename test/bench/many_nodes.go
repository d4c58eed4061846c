// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/gate"
	"github.com/sluice-dev/sluice/internal/hold"
	"github.com/sluice-dev/sluice/test/apiserver"
	"github.com/sluice-dev/sluice/test/figures"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/webhook"
)

// No machine has room for these nodes, so they are in the memory of this process only.
const (
	manyNodesCount = 5000
	imagesPerNode  = 20
	// reportsPerSecond is how many agents report something that rollouts may wait for, so that each
	// does every other second.
	reportsPerSecond = manyNodesCount / 2
)

// gatingManyNodes measures how soon the webhook answers in a cluster of many nodes, and how soon a
// held Deployment is released after the last of them has reported its image while all the others
// report something else. A thousand other Deployments are held. Webhook and gate controller are in
// this process, and the API server is real.
func gatingManyNodes(ctx context.Context, opts *options, r *figures.Results) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := startLargeCluster(ctx)
	if err != nil {
		return fmt.Errorf("start a gate that knows %d nodes: %w", manyNodesCount, err)
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	if err := l.crowd(ctx); err != nil {
		return fmt.Errorf("create %d ImagePrefetches and held Deployments: %w", crowd, err)
	}
	answers := r.Percentiles(fmt.Sprintf("webhook_latency_%d_nodes", manyNodesCount), "ms")
	releases := r.Percentiles(fmt.Sprintf("release_latency_%d_nodes", manyNodesCount), "ms")
	for run := range opts.runs {
		answered, err := webhookLatency(ctx, l.client, run, l.url, l.asker)
		if err != nil {
			return fmt.Errorf("ask the webhook of many nodes: %w", err)
		}
		answers.Add(answered, 50, 99)
		stopReports := l.nodes.reportAll()
		var released []float64
		for round := range opts.rounds {
			took, err := l.releaseLatency(ctx, fmt.Sprintf("measured-%d-%d", run, round))
			if err != nil {
				stopReports()
				return fmt.Errorf("release among many nodes: %w", err)
			}
			released = append(released, milliseconds(took))
		}
		stopReports()
		releases.Add(released, 50, 99, 100)
	}
	return nil
}

// largeCluster is an API server with the webhook of the gate and its controller, which know many nodes.
type largeCluster struct {
	client client.WithWatch
	nodes  *manyNodes
	url    string
	asker  *http.Client
	stop   func() error
}

// startLargeCluster starts it. The caller stops it.
func startLargeCluster(ctx context.Context) (_ *largeCluster, err error) {
	api, err := apiserver.Start()
	if err != nil {
		return nil, err
	}
	stop := []func() error{api.Stop}
	l := &largeCluster{stop: func() error {
		var errs []error
		for i := range stop {
			errs = append(errs, stop[len(stop)-1-i]())
		}
		return errors.Join(errs...)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.stop())
		}
	}()
	kinds := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(kinds), v1alpha1.AddToScheme(kinds)); err != nil {
		return nil, err
	}
	config := *api.Config
	config.QPS = -1
	if l.client, err = client.NewWithWatch(&config, client.Options{Scheme: kinds}); err != nil {
		return nil, err
	}
	if l.nodes, err = newManyNodes(ctx, kinds); err != nil {
		return nil, err
	}
	hooks := webhookMux{http.NewServeMux()}
	options := ctrl.Options{Scheme: kinds, WebhookServer: hooks, Metrics: server.Options{BindAddress: "0"}}
	if err := gate.AddToCache(&options.Cache, client.ObjectKey{}); err != nil {
		return nil, err
	}
	manager, err := ctrl.NewManager(&config, options)
	if err != nil {
		return nil, err
	}
	figures := prometheus.NewRegistry()
	metrics, err := gate.NewMetrics(figures)
	if err != nil {
		return nil, err
	}
	cluster := &gate.ClusterReader{Nodes: l.nodes.Nodes, Prefetches: manager.GetCache()}
	controller := &gate.Reconciler{Client: manager.GetClient(), APIReader: manager.GetAPIReader(), Cluster: cluster,
		Recorder: manager.GetEventRecorder("sluice-gate"), Clock: clock.RealClock{}, Metrics: metrics}
	if err := errors.Join(
		gate.AddIndexes(ctx, manager.GetFieldIndexer()),
		webhook.SetupWithManager(ctx, manager, webhook.Options{}, cluster, figures),
		controller.SetupWithManager(manager),
	); err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- manager.Start(running) }()
	listener := httptest.NewTLSServer(hooks)
	l.url, l.asker = listener.URL+"/gate", listener.Client()
	stop = append(stop, func() error {
		listener.Close()
		cancel()
		return <-ended
	})
	if !manager.GetCache().WaitForCacheSync(running) {
		return nil, errors.New("the cache was not filled")
	}
	return l, nil
}

// crowd creates Deployments that are held, each for an image of its own that no node has.
func (l *largeCluster) crowd(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range crowd {
		group.Go(func() error {
			name := fmt.Sprintf("crowd-%d", i)
			_, err := l.hold(ctx, name, fmt.Sprintf("%s/bench/crowd:v%d", stack.Registry, i), map[string]string{"crowd": "true"})
			return err
		})
	}
	return group.Wait()
}

// hold creates a Deployment that is held for an image, and its ImagePrefetch, which has resolved it.
func (l *largeCluster) hold(ctx context.Context, name, image string, labels map[string]string) (*appsv1.Deployment, error) {
	prefetch := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{v1alpha1.ImageReference(image)}}}
	if err := l.client.Create(ctx, prefetch); err != nil {
		return nil, err
	}
	prefetch.Status = v1alpha1.ImagePrefetchStatus{
		ObservedGeneration: prefetch.Generation,
		Images:             []v1alpha1.ImageStatus{{Name: image, Digest: digestOf(0)}},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDistributing,
			ObservedGeneration: prefetch.Generation, LastTransitionTime: metav1.Now()}},
	}
	if err := l.client.Status().Update(ctx, prefetch); err != nil {
		return nil, err
	}
	held := gatedBy(name, image)
	held.Spec.Paused = true
	held.Labels = map[string]string{v1alpha1.HoldLabel: hold.ImagesOf(&held.Spec.Template.Spec).Hash()}
	for key, value := range labels {
		held.Labels[key] = value
	}
	held.Annotations[v1alpha1.HeldAtAnnotation] = time.Now().UTC().Format(time.RFC3339)
	held.Annotations[v1alpha1.HoldTimeoutAnnotation] = "0"
	return held, l.client.Create(ctx, held)
}

// releaseLatency is from the report of the last node to the release, as a watching client sees it.
func (l *largeCluster) releaseLatency(ctx context.Context, name string) (time.Duration, error) {
	image := fmt.Sprintf("%s/bench/many:%s", stack.Registry, name)
	held, err := l.hold(ctx, name, image, nil)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	watcher, err := l.client.Watch(ctx, &appsv1.DeploymentList{}, one(held))
	if err != nil {
		return 0, err
	}
	defer watcher.Stop()
	brings := func(set *v1alpha1.NodeImageSet) { set.Spec.ImageSet[0].Name, set.Status.Images[0].Name = image, image }
	for i := range manyNodesCount - 1 {
		l.nodes.report(i, brings)
	}
	if err := l.client.Get(ctx, client.ObjectKeyFromObject(held), held); err != nil {
		return 0, err
	}
	if !held.Spec.Paused {
		return 0, fmt.Errorf("%s was released before the last node had its image", name)
	}
	reportedAt := time.Now()
	l.nodes.report(manyNodesCount-1, brings)
	for {
		select {
		case event := <-watcher.ResultChan():
			if d, ok := event.Object.(*appsv1.Deployment); ok && !d.Spec.Paused {
				took := time.Since(reportedAt)
				prefetch := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: held.Namespace, Name: held.Name}}
				return took, errors.Join(l.client.Delete(ctx, held), l.client.Delete(ctx, prefetch))
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the release of %s: %w", name, ctx.Err())
		}
	}
}

// manyNodes take Pods and have images, each under a name that all nodes share. The first image of a
// node is the one that a measured release waits for.
type manyNodes struct {
	*gate.Nodes
	informer *controllertest.FakeInformer

	mu   sync.Mutex
	sets []*v1alpha1.NodeImageSet
}

func newManyNodes(ctx context.Context, kinds *runtime.Scheme) (*manyNodes, error) {
	from := &informertest.FakeInformers{Scheme: kinds}
	nodes := &manyNodes{Nodes: &gate.Nodes{Clock: clock.RealClock{}, AgentTimeout: time.Minute}}
	if err := nodes.Watch(ctx, from); err != nil {
		return nil, err
	}
	nodeInformer, err := from.FakeInformerFor(ctx, &corev1.Node{})
	if err != nil {
		return nil, err
	}
	if nodes.informer, err = from.FakeInformerFor(ctx, &v1alpha1.NodeImageSet{}); err != nil {
		return nil, err
	}
	for i := range manyNodesCount {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i), UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{
				corev1.LabelHostname: fmt.Sprintf("node-%d", i), corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3),
			}},
			Status: corev1.NodeStatus{
				NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64"},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}
		set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
		for j := range imagesPerNode {
			name := fmt.Sprintf("%s/bench/many:v%d", stack.Registry, j)
			set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: name, Digest: digestOf(j)})
			set.Status.Images = append(set.Status.Images, v1alpha1.NodeImageStatus{Name: name, Digest: digestOf(j), State: v1alpha1.ImagePresent})
		}
		nodeInformer.Add(node)
		nodes.informer.Add(set)
		nodes.sets = append(nodes.sets, set)
	}
	return nodes, nil
}

// digestOf is the digest of the image with a number.
func digestOf(image int) string { return fmt.Sprintf("sha256:%s%02d", strings.Repeat("a", 62), image) }

// report changes the NodeImageSet of a node.
func (n *manyNodes) report(node int, edit func(*v1alpha1.NodeImageSet)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.sets[node]
	n.sets[node] = before.DeepCopy()
	edit(n.sets[node])
	n.informer.Update(before, n.sets[node])
}

// reportAll has every agent report, again and again, that its second image has gone or is back.
func (n *manyNodes) reportAll() (stop func()) {
	const tick = 10 * time.Millisecond
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for next := 0; ; {
			select {
			case <-stopped:
				return
			case <-ticker.C:
			}
			for range reportsPerSecond * int(tick) / int(time.Second) {
				n.report(next%manyNodesCount, func(set *v1alpha1.NodeImageSet) {
					image := &set.Status.Images[1]
					if image.State == v1alpha1.ImagePresent {
						image.State = v1alpha1.ImagePulling
					} else {
						image.State = v1alpha1.ImagePresent
					}
				})
				next++
			}
		}
	}()
	return func() {
		close(stopped)
		<-ended
	}
}

// webhookMux is a webhook server without a listener of its own.
type webhookMux struct{ *http.ServeMux }

func (w webhookMux) Register(path string, hook http.Handler) { w.Handle(path, hook) }

func (w webhookMux) WebhookMux() *http.ServeMux { return w.ServeMux }

func (w webhookMux) NeedLeaderElection() bool { return false }

func (w webhookMux) StartedChecker() healthz.Checker { return healthz.Ping }

func (w webhookMux) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
