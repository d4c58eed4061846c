// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/figures"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

const (
	// crowd is how many ImagePrefetches, and held Deployments, are in the caches.
	crowd = 1000
	// reviews is how many requests the webhook is asked in a run for its latency.
	reviews = 4000
)

// gating measures how soon a held Deployment is released after the last node has reported
// its image, as a watching client sees both, and then how soon the webhook answers; both
// among a thousand others. Last, both in a cluster of many nodes.
func gating(ctx context.Context, opts *options, r *figures.Results) error {
	if err := gatingRealNodes(ctx, opts, r); err != nil {
		return err
	}
	return gatingManyNodes(ctx, opts, r)
}

func gatingRealNodes(ctx context.Context, opts *options, r *figures.Results) (err error) {
	m, err := start(ctx, opts, 2, stack.Options{Webhooks: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	if err := m.crowd(ctx); err != nil {
		return fmt.Errorf("create %d ImagePrefetches and Deployments: %w", crowd, err)
	}
	url, asker, err := m.Webhook("/gate")
	if err != nil {
		return err
	}
	release, webhook := r.Percentiles("release_latency", "ms"), r.Percentiles("webhook_latency", "ms")
	for run := range opts.runs {
		var releases []float64
		for round := range opts.rounds {
			took, err := m.releaseLatency(ctx, fmt.Sprintf("measured-%d-%d", run, round))
			if err != nil {
				return err
			}
			releases = append(releases, milliseconds(took))
		}
		release.Add(releases, 50, 99, 100)
		answers, err := webhookLatency(ctx, m.Client, run, url, asker)
		if err != nil {
			return fmt.Errorf("ask the webhook: %w", err)
		}
		webhook.Add(answers, 50, 99)
	}
	return nil
}

// crowd fills the caches: prefetches that no node matches, and Deployments that are
// held for them.
func (m *machinery) crowd(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range crowd {
		group.Go(func() error {
			name := fmt.Sprintf("crowd-%d", i)
			image := stack.Registry + "/bench/crowd:v1"
			prefetch := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: v1alpha1.ImagePrefetchSpec{
				Images: []v1alpha1.ImageReference{v1alpha1.ImageReference(image)}, NodeSelector: map[string]string{"matches": "none"}}}
			if err := m.Client.Create(ctx, prefetch); err != nil {
				return err
			}
			deployment := gatedBy(name, image)
			deployment.Labels = map[string]string{"crowd": "true"}
			return m.Client.Create(ctx, deployment)
		})
	}
	return group.Wait()
}

// gatedBy is a Deployment without Pods that waits for the prefetch of its name.
func gatedBy(name, image string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{v1alpha1.PrefetchAnnotation: name}},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image}}},
			},
		},
	}
}

// releaseLatency holds a Deployment for an image that is then brought to the nodes.
func (m *machinery) releaseLatency(ctx context.Context, name string) (time.Duration, error) {
	image, err := m.push(1, images.MiB/4)
	if err != nil {
		return 0, err
	}
	deployment := gatedBy(name, image)
	if err := m.Client.Create(ctx, deployment); err != nil {
		return 0, err
	}
	if !deployment.Spec.Paused {
		return 0, fmt.Errorf("deployment %s is not held", name)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	released, err := m.Client.Watch(ctx, &appsv1.DeploymentList{}, one(deployment))
	if err != nil {
		return 0, err
	}
	defer released.Stop()
	prefetch := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{v1alpha1.ImageReference(image)}}}
	reported, err := m.Client.Watch(ctx, &v1alpha1.NodeImageSetList{})
	if err != nil {
		return 0, err
	}
	defer reported.Stop()
	if err := m.Client.Create(ctx, prefetch); err != nil {
		return 0, err
	}
	var reportedAt, releasedAt time.Time
	var reportedIn, releasedIn string
	missing := map[string]bool{}
	for _, node := range m.Cluster.Nodes() {
		missing[node.Name] = true
	}
	for len(missing) > 0 || releasedAt.IsZero() {
		select {
		case event := <-reported.ResultChan():
			if set, ok := event.Object.(*v1alpha1.NodeImageSet); ok && missing[set.Name] && has(set, image) {
				delete(missing, set.Name)
				reportedAt, reportedIn = time.Now(), set.ResourceVersion
			}
		case event := <-released.ResultChan():
			if d, ok := event.Object.(*appsv1.Deployment); ok && event.Type == watch.Modified && !d.Spec.Paused && releasedAt.IsZero() {
				releasedAt, releasedIn = time.Now(), d.ResourceVersion
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the release of %s: %w", name, ctx.Err())
		}
	}
	if err := inOrder(reportedIn, releasedIn); err != nil {
		return 0, fmt.Errorf("deployment %s: %w", name, err)
	}
	// The node need not keep the image, or its set would fill up.
	if err := m.Client.Delete(ctx, prefetch); err != nil {
		return 0, err
	}
	// The two watches are independent. If the release was seen first, the latency is negative.
	return releasedAt.Sub(reportedAt), nil
}

// has reports whether the agent of a node reports an image as Present.
func has(set *v1alpha1.NodeImageSet, image string) bool {
	return slices.ContainsFunc(set.Status.Images, func(status v1alpha1.NodeImageStatus) bool {
		return status.Name == image && status.State == v1alpha1.ImagePresent
	})
}

// inOrder fails if the version in which a Deployment was released is older than that in
// which the last node reported its image. The store numbers all writes in one row.
func inOrder(reported, released string) error {
	order, err := resourceversion.CompareResourceVersion(reported, released)
	if err == nil && order >= 0 {
		err = fmt.Errorf("released in version %s, and the last node reported its image in version %s only", released, reported)
	}
	return err
}

func one(object client.Object) client.ListOption {
	return &client.ListOptions{Namespace: object.GetNamespace(), FieldSelector: fields.OneTermEqualSelector("metadata.name", object.GetName())}
}

// webhookLatency asks the webhook as the API server does, over one connection: is a
// Deployment whose image changes to be held? Each request is about another Deployment
// than the one before, and about an image that no other request names.
func webhookLatency(ctx context.Context, from client.Client, run int, url string, asker *http.Client) ([]float64, error) {
	var stored appsv1.DeploymentList
	if err := from.List(ctx, &stored, client.InNamespace("default"), client.MatchingLabels{"crowd": "true"}); err != nil {
		return nil, err
	}
	bodies, err := requests(stored.Items, run)
	if err != nil {
		return nil, err
	}
	var millis []float64
	for _, body := range bodies {
		began := time.Now()
		if err := ask(ctx, asker, url, body); err != nil {
			return nil, err
		}
		millis = append(millis, milliseconds(time.Since(began)))
	}
	return millis, nil
}

// requests are the bodies of the reviews of a run, no two of them alike in any run.
func requests(stored []appsv1.Deployment, run int) ([][]byte, error) {
	if len(stored) == 0 {
		return nil, errors.New("no Deployments to ask about")
	}
	var bodies [][]byte
	for i := range reviews {
		before := stored[i%len(stored)].DeepCopy()
		before.APIVersion, before.Kind = "apps/v1", "Deployment"
		after := before.DeepCopy()
		after.Spec.Template.Spec.Containers[0].Image = fmt.Sprintf("%s/bench/next:v%d-%d", stack.Registry, run, i)
		body, err := review(types.UID(fmt.Sprintf("bench-%d-%d", run, i)), before, after)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

func review(uid types.UID, stored, changed *appsv1.Deployment) ([]byte, error) {
	before, err := json.Marshal(stored)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(changed)
	if err != nil {
		return nil, err
	}
	return json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: uid, Operation: admissionv1.Update, Namespace: stored.Namespace, Name: stored.Name,
			Kind:      metav1.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"},
			Resource:  metav1.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"},
			Object:    runtime.RawExtension{Raw: after},
			OldObject: runtime.RawExtension{Raw: before},
		},
	})
}

// ask expects that the Deployment is held.
func ask(ctx context.Context, c *http.Client, url string, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(content, &answer); err != nil {
		return fmt.Errorf("read %s: %w", content, err)
	}
	if answer.Response == nil || !answer.Response.Allowed || len(answer.Response.Patch) == 0 {
		return fmt.Errorf("unexpected answer %s", content)
	}
	return nil
}
