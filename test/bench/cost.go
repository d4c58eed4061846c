// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/procfs"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/apiserver"
	"github.com/sluice-dev/sluice/test/figures"
)

// costWrites is how many writes of a kind are measured in a run.
const costWrites = 300

// cost measures the processor's time that the API server and etcd spend on a write of a
// NodeImageSet as the controller makes it (the spec) and as an agent makes it (the status),
// by how many images the set has, while both watch it.
func cost(ctx context.Context, opts *options, r *figures.Results) (err error) {
	server, err := apiserver.Start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	config := rest.CopyConfig(server.Config)
	config.QPS = -1
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	for _, listed := range [][]client.ListOption{nil, {client.MatchingFields{"metadata.name": "node"}}} {
		watch, err := c.Watch(ctx, &v1alpha1.NodeImageSetList{}, listed...)
		if err != nil {
			return err
		}
		defer watch.Stop()
		go func() {
			for range watch.ResultChan() { // it is enough that somebody reads
			}
		}()
	}
	for range opts.runs {
		for _, images := range []int{1, 20, 100} {
			spec, status, err := costOf(ctx, server, c, images)
			if err != nil {
				return err
			}
			r.Add(fmt.Sprintf("api_cpu_spec_%d_images", images), spec, "ms")
			r.Add(fmt.Sprintf("api_cpu_status_%d_images", images), status, "ms")
		}
	}
	return nil
}

// costOf returns milliseconds for each write.
func costOf(ctx context.Context, server *apiserver.Server, c client.Client, images int) (spec, status float64, err error) {
	set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "node"}}
	var answers []v1alpha1.NodeImageStatus
	for i := range images {
		name := fmt.Sprintf("registry.example.com/team/app-%03d:v1", i)
		digest := fmt.Sprintf("sha256:%064x", i)
		set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: name, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyMirror})
		answers = append(answers, v1alpha1.NodeImageStatus{
			Name: name, State: v1alpha1.ImagePulling, Digest: digest, SizeBytes: 200 << 20, Source: v1alpha1.SourceMirror, Attempts: 1,
		})
	}
	if err := c.Create(ctx, set); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.Delete(ctx, set)) }()
	policies := []v1alpha1.RegistryPolicy{v1alpha1.RegistryPolicyMirror, v1alpha1.RegistryPolicyDefault}
	spec, err = eachOf(server, func(i int) error {
		set.Spec.ImageSet[0].RegistryPolicy = policies[(i+1)%2]
		return c.Update(ctx, set)
	})
	if err != nil {
		return 0, 0, err
	}
	writer := nodeagent.NewStatusWriter(c, "node")
	status, err = eachOf(server, func(i int) error {
		answers[0].PulledBytes = int64(i)
		return writer.WriteStatus(ctx, set.UID, v1alpha1.NodeImageSetStatus{ObservedGeneration: set.Generation, Images: answers})
	})
	return spec, status, err
}

// eachOf writes many times, and returns what the servers spent on each write, in
// milliseconds.
func eachOf(server *apiserver.Server, write func(i int) error) (float64, error) {
	before, err := serversSpent(server)
	if err != nil {
		return 0, err
	}
	for i := range costWrites {
		if err := write(i); err != nil {
			return 0, err
		}
	}
	after, err := serversSpent(server)
	return 1000 * (after - before) / costWrites, err
}

// serversSpent is the processor's time that the API server and etcd have had, in seconds.
func serversSpent(server *apiserver.Server) (spent float64, err error) {
	apiServer, etcd, err := server.Processes()
	if err != nil {
		return 0, err
	}
	for _, process := range []procfs.Proc{apiServer, etcd} {
		stat, err := process.Stat()
		if err != nil {
			return 0, err
		}
		spent += stat.CPUTime()
	}
	return spent, nil
}
