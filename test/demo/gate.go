// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	nextImage   = "registry.sluice.test/demo/app:v2"
	readyMoment = "the ImagePrefetch is Ready: every node has the image"
)

// gate changes an image of the gated Deployment and shows that the rollout waits
// for the image: held, prefetched, released, rolled out.
func (s *show) gate(ctx context.Context) error {
	fmt.Print("\n== A rollout that is held until its image is on the nodes\n\n")
	if err := s.kubectl(ctx, "annotate", "deployment/"+deploymentName, v1alpha1.PrefetchAnnotation+"="+sampleName); err != nil {
		return err
	}
	began := time.Now()
	if err := s.kubectl(ctx, "set", "image", "deployment/"+deploymentName, "c0="+nextImage); err != nil {
		return err
	}
	held := &appsv1.Deployment{}
	if err := s.client.Get(ctx, client.ObjectKey{Namespace: "default", Name: deploymentName}, held); err != nil {
		return err
	}
	if !held.Spec.Paused || held.Labels[v1alpha1.HoldLabel] == "" {
		return errors.New("the Deployment is not held, though its image is on no node")
	}
	if err := s.notBegun(ctx); err != nil {
		return err
	}
	if err := s.kubectl(ctx, "get", "deployments", "-L", v1alpha1.HoldLabel); err != nil {
		return err
	}
	if err := s.kubectl(ctx, "patch", "imageprefetch", sampleName, "--type=json", "-p", addImage(nextImage)); err != nil {
		return err
	}
	times, err := s.await(ctx, held)
	if err != nil {
		return err
	}
	fmt.Println()
	for _, moment := range times {
		fmt.Printf("%6.1fs  %s\n", moment.at.Sub(began).Seconds(), moment.what)
	}
	fmt.Println()
	if err := s.showEvents(ctx, nextImage); err != nil {
		return err
	}
	return s.onEveryNode(ctx, append(slices.Clone(sampleImages), nextImage)...)
}

// addImage is a JSON patch that puts an image behind those of an ImagePrefetch.
func addImage(image string) string {
	return `[{"op":"add","path":"/spec/images/-","value":"` + image + `"}]`
}

// moment is one line of the timeline.
type moment struct {
	what string
	at   time.Time
}

// await follows the prefetch and the Deployment until the rollout is done. It fails
// when the Deployment is released before the prefetch is Ready.
func (s *show) await(ctx context.Context, held *appsv1.Deployment) ([]moment, error) {
	times := []moment{{"held: the new image is on no node, the old Pods go on", time.Now()}}
	if at, err := time.Parse(time.RFC3339, held.Annotations[v1alpha1.HeldAtAnnotation]); err != nil {
		return nil, fmt.Errorf("read when the hold began: %w", err)
	} else if at.After(time.Now()) {
		return nil, fmt.Errorf("the hold began at %s, in the future", at)
	}
	prefetches, err := s.client.Watch(ctx, &v1alpha1.ImagePrefetchList{}, client.InNamespace("default"))
	if err != nil {
		return nil, err
	}
	defer prefetches.Stop()
	deployments, err := s.client.Watch(ctx, &appsv1.DeploymentList{}, client.InNamespace("default"))
	if err != nil {
		return nil, err
	}
	defer deployments.Stop()
	released := false
	for {
		var event watch.Event
		var open bool
		select {
		case event, open = <-prefetches.ResultChan():
		case event, open = <-deployments.ResultChan():
		case <-ctx.Done():
			return nil, fmt.Errorf("the rollout did not end: %w", ctx.Err())
		}
		if !open {
			return nil, errors.New("the API server ended the watch")
		}
		switch object := event.Object.(type) {
		case *v1alpha1.ImagePrefetch:
			ready := meta.FindStatusCondition(object.Status.Conditions, v1alpha1.ConditionReady)
			if len(times) == 1 && len(object.Spec.Images) > len(sampleImages) && ready != nil && ready.Status == "True" && ready.ObservedGeneration == object.Generation {
				times = append(times, moment{readyMoment, time.Now()})
			}
		case *appsv1.Deployment:
			if !released && object.Labels[v1alpha1.HoldLabel] == "" {
				released = true
				if err := s.readyNow(ctx); err != nil {
					return nil, err
				}
				if len(times) == 1 { // the slower of the two watches has not delivered it yet
					times = append(times, moment{readyMoment, time.Now()})
				}
				times = append(times, moment{"released: the rollout begins", time.Now()})
			}
			if released && rolledOut(object) {
				return append(times, moment{"every Pod runs the new image", time.Now()}), nil
			}
		}
	}
}

// notBegun fails if there is a ReplicaSet with the new image.
func (s *show) notBegun(ctx context.Context) error {
	var sets appsv1.ReplicaSetList
	if err := s.client.List(ctx, &sets, client.InNamespace("default")); err != nil {
		return err
	}
	for _, set := range sets.Items {
		if set.Spec.Template.Spec.Containers[0].Image == nextImage {
			return fmt.Errorf("the rollout is held, and ReplicaSet %s has the new image", set.Name)
		}
	}
	return nil
}

// readyNow fails unless the prefetch is Ready for its present generation.
func (s *show) readyNow(ctx context.Context) error {
	prefetch := &v1alpha1.ImagePrefetch{}
	if err := s.client.Get(ctx, client.ObjectKey{Namespace: "default", Name: sampleName}, prefetch); err != nil {
		return err
	}
	ready := meta.FindStatusCondition(prefetch.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status != "True" || ready.ObservedGeneration != prefetch.Generation {
		return fmt.Errorf("the Deployment was released while the ImagePrefetch was not Ready: %+v", ready)
	}
	return nil
}

func rolledOut(d *appsv1.Deployment) bool {
	return d.Status.ObservedGeneration == d.Generation &&
		d.Status.UpdatedReplicas == *d.Spec.Replicas &&
		d.Status.AvailableReplicas == *d.Spec.Replicas &&
		d.Status.Replicas == *d.Spec.Replicas
}
