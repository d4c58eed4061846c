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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/gate"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/webhook"
)

// No machine has room for these nodes, so they are in the memory of the webhook only.
const (
	manyNodesCount = 5000
	imagesPerNode  = 20
)

// inProcessWebhook is the webhook of the gate in this process. It reads ImagePrefetches from the
// API server of the stack.
type inProcessWebhook struct {
	url   string
	asker *http.Client
	stop  func() error
}

// startWebhookOfManyNodes starts a webhook that knows many nodes. The caller stops it.
func (m *machinery) startWebhookOfManyNodes(ctx context.Context) (*inProcessWebhook, error) {
	nodes, err := manyNodes(ctx, m.Client.Scheme())
	if err != nil {
		return nil, err
	}
	config, err := m.Cluster.RESTConfig()
	if err != nil {
		return nil, err
	}
	hooks := webhookMux{http.NewServeMux()}
	manager, err := ctrl.NewManager(config, ctrl.Options{Scheme: m.Client.Scheme(), WebhookServer: hooks, Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	err = errors.Join(
		gate.IndexPrefetches(ctx, manager.GetFieldIndexer()),
		webhook.SetupWithManager(ctx, manager, webhook.Options{}, &gate.ClusterReader{Nodes: nodes, Prefetches: manager.GetCache()}, prometheus.NewRegistry()),
	)
	if err != nil {
		cancel()
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- manager.Start(ctx) }()
	if !manager.GetCache().WaitForCacheSync(ctx) {
		cancel()
		return nil, errors.Join(errors.New("the cache was not filled"), <-ended)
	}
	listener := httptest.NewTLSServer(hooks)
	return &inProcessWebhook{listener.URL + "/gate", listener.Client(), func() error {
		listener.Close()
		cancel()
		return <-ended
	}}, nil
}

// manyNodes follows nodes that take Pods and have images, each under a name and a digest that all
// nodes share.
func manyNodes(ctx context.Context, scheme *runtime.Scheme) (*gate.Nodes, error) {
	from := &informertest.FakeInformers{Scheme: scheme}
	nodes := &gate.Nodes{Clock: clock.RealClock{}, AgentTimeout: time.Minute}
	if err := nodes.Watch(ctx, from); err != nil {
		return nil, err
	}
	nodeInformer, err := from.FakeInformerFor(ctx, &corev1.Node{})
	if err != nil {
		return nil, err
	}
	setInformer, err := from.FakeInformerFor(ctx, &v1alpha1.NodeImageSet{})
	if err != nil {
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
			name, digest := fmt.Sprintf("%s/bench/many:v%d", stack.Registry, j), fmt.Sprintf("sha256:%s%02d", strings.Repeat("a", 62), j)
			set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: name, Digest: digest})
			set.Status.Images = append(set.Status.Images, v1alpha1.NodeImageStatus{Name: name, Digest: digest, State: v1alpha1.ImagePresent})
		}
		nodeInformer.Add(node)
		setInformer.Add(set)
	}
	return nodes, nil
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
