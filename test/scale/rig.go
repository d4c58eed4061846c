// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/apiserver"
)

// namespace is where Sluice is installed.
const namespace = "sluice-system"

// rig is everything that runs.
type rig struct {
	opts   *options
	server *apiserver.Server
	scheme *runtime.Scheme
	// client is an administrator's, planner that of the controller's account.
	client  client.WithWatch
	planner client.Client

	controllers *controllers
	probe       *probe
	truth       *truth
	samples     *samples
	heartbeats  atomic.Int64
	heartbeat   spending // of each, once it is measured
	probing     spending // of each cycle

	// held are the images that each measured node has.
	held []v1alpha1.ImageReference

	mu       sync.Mutex
	measured []metav1.OwnerReference // the nodes

	lifetime context.Context // ends with the rig
	end      context.CancelFunc
	running  sync.WaitGroup
}

// start starts everything. The caller stops it.
func start(ctx context.Context, opts *options) (_ *rig, err error) {
	r := &rig{opts: opts, scheme: runtime.NewScheme(), truth: newTruth(), samples: newSamples()}
	r.lifetime, r.end = context.WithCancel(ctx)
	if r.server, err = apiserver.StartDurable(); err != nil {
		r.end()
		return nil, err
	}
	if err := r.install(ctx); err != nil {
		return nil, errors.Join(err, r.stop())
	}
	return r, nil
}

func (r *rig) install(ctx context.Context) error {
	if err := errors.Join(clientgoscheme.AddToScheme(r.scheme), v1alpha1.AddToScheme(r.scheme)); err != nil {
		return err
	}
	config := rest.CopyConfig(r.server.Config)
	config.QPS = -1
	var err error
	if r.client, err = client.NewWithWatch(config, client.Options{Scheme: r.scheme}); err != nil {
		return err
	}
	if err := r.applyManifests(ctx); err != nil {
		return fmt.Errorf("install accounts, rights and policies: %w", err)
	}
	token, err := r.token(ctx, "sluice-controller", nil)
	if err != nil {
		return err
	}
	config = rest.AnonymousClientConfig(r.server.Config)
	config.BearerToken, config.UserAgent, config.QPS = token, "sluice-controller", -1
	if r.planner, err = client.New(config, client.Options{Scheme: r.scheme, Mapper: r.client.RESTMapper()}); err != nil {
		return err
	}
	if err := r.addNodes(r.lifetime); err != nil {
		return err
	}
	if r.controllers, err = newControllers(ctx, r.server, token, r.opts.logs); err != nil {
		return err
	}
	if err := r.controllers.start(ctx); err != nil {
		return err
	}
	r.probe, err = newProbe(r.lifetime, r)
	return err
}

// stop ends everything.
func (r *rig) stop() error {
	r.end()
	var err error
	if r.controllers != nil {
		err = r.controllers.close()
	}
	r.running.Wait()
	return errors.Join(err, r.server.Stop())
}

// installed are the kinds of config/install.yaml that matter to who may do what, and at what cost.
var installed = []string{
	"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
	"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}

// applyManifests creates Sluice's accounts, their rights, and the admission policies. The CRDs are there.
func (r *rig) applyManifests(ctx context.Context) error {
	if err := r.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(r.server.Root, "config", "install.yaml"))
	if err != nil {
		return err
	}
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, object); err != nil {
			return err
		}
		if !slices.Contains(installed, object.GetKind()) {
			continue
		}
		if err := r.client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}
