// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

// The settings of an agent without flags.
const (
	maxParallelPulls  = 3
	noProgressTimeout = time.Minute
	verifyInterval    = 10 * time.Minute
)

// source is where a pull under a policy takes content from.
func source(policy v1alpha1.RegistryPolicy) v1alpha1.ImageSource {
	if policy == v1alpha1.RegistryPolicyDefault {
		return v1alpha1.SourceUpstream
	}
	return v1alpha1.SourceMirror
}

// startAgent runs the agent of a node until ctx ends.
func (r *rig) startAgent(ctx context.Context, node *corev1.Node, index int) error {
	sets, writer, err := r.connect(ctx, node)
	if err != nil {
		return err
	}
	agent := nodeagent.New(nodeagent.Options{
		Runtime:           newNodeRuntime(index),
		Status:            tellingWriter{writer, node.Name, r.truth},
		MaxParallelPulls:  maxParallelPulls,
		NoProgressTimeout: noProgressTimeout,
		VerifyInterval:    verifyInterval,
		Log:               logr.Discard(),
	})
	r.running.Go(func() { agent.Run(ctx) })
	return r.follow(ctx, sets, agent.Apply)
}

// connect makes what an agent has: a connection of its own to the API server, with a token that is
// bound to the node, over which it follows the node's NodeImageSet and writes its status.
func (r *rig) connect(ctx context.Context, node *corev1.Node) (cache.Cache, nodeagent.StatusWriter, error) {
	bound := &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: node.Name, UID: node.UID}
	token, err := r.token(ctx, "sluice-agent", bound)
	if err != nil {
		return nil, nil, err
	}
	config := rest.AnonymousClientConfig(r.server.Config)
	config.BearerToken, config.UserAgent, config.QPS = token, "sluice-agent", -1
	config.Dial = (&net.Dialer{}).DialContext // clients that dial by themselves share no connection
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, nil, err
	}
	options := nodeagent.CacheOptions(node.Name)
	options.HTTPClient, options.Scheme, options.Mapper = transport, r.scheme, r.client.RESTMapper()
	sets, err := cache.New(config, options)
	if err != nil {
		return nil, nil, err
	}
	c, err := client.New(config, client.Options{HTTPClient: transport, Scheme: r.scheme, Mapper: r.client.RESTMapper()})
	if err != nil {
		return nil, nil, err
	}
	return sets, nodeagent.NewStatusWriter(c, node.Name), nil
}

// follow calls take with each new spec of the cache's only NodeImageSet until ctx ends.
func (r *rig) follow(ctx context.Context, sets cache.Cache, take func(*v1alpha1.NodeImageSet)) error {
	r.running.Go(func() { _ = sets.Start(ctx) }) // it ends with ctx
	informer, err := sets.GetInformer(ctx, &v1alpha1.NodeImageSet{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("follow a NodeImageSet: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { take(object.(*v1alpha1.NodeImageSet).DeepCopy()) },
		UpdateFunc: func(before, after any) {
			set := after.(*v1alpha1.NodeImageSet)
			if set.Generation != before.(*v1alpha1.NodeImageSet).Generation {
				take(set.DeepCopy())
			}
		},
	})
	return err
}

// token requests one for a service account of Sluice's.
func (r *rig) token(ctx context.Context, account string, bound *authenticationv1.BoundObjectReference) (string, error) {
	seconds := int64((24 * time.Hour).Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: bound}}
	serviceAccount := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := r.client.SubResource("token").Create(ctx, serviceAccount, request); err != nil {
		return "", fmt.Errorf("request a token for %s: %w", account, err)
	}
	return request.Status.Token, nil
}

// tellingWriter tells the truth about what a node has as soon as the API has it.
type tellingWriter struct {
	nodeagent.StatusWriter
	node  string
	truth *truth
}

func (w tellingWriter) WriteStatus(ctx context.Context, uid types.UID, status v1alpha1.NodeImageSetStatus) error {
	err := w.StatusWriter.WriteStatus(ctx, uid, status)
	if err == nil {
		w.truth.record(w.node, status.Images, time.Now())
	}
	return err
}
