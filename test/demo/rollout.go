// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// images are those of the sample.
var sampleImages = []string{"registry.sluice.test/demo/app:v1", "registry.sluice.test/demo/sidecar:v1"}

// deploymentName is the demo's only Deployment.
const deploymentName = "demo"

// presentMessage is how the kubelet says that it did not pull.
const presentMessage = "already present on machine"

// rollout starts a Pod on each node and shows that no kubelet pulled.
func (s *show) rollout(ctx context.Context) error {
	fmt.Print("\n== A Deployment of these images on all nodes\n\n")
	deployment := newDeployment(int32(len(s.Nodes)))
	if err := s.client.Create(ctx, deployment); err != nil {
		return err
	}
	if err := s.kubectl(ctx, "rollout", "status", "deployment/"+deployment.Name); err != nil {
		return err
	}
	fmt.Println()
	return s.showEvents(ctx, sampleImages...)
}

func newDeployment(replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": "demo"}
	containers := make([]corev1.Container, len(sampleImages))
	for i, image := range sampleImages {
		containers[i] = corev1.Container{Name: fmt.Sprintf("c%d", i), Image: image, ImagePullPolicy: corev1.PullIfNotPresent}
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: deploymentName},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			// With one Pod for each node, there is no node for a surge.
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxSurge: ptr.To(intstr.FromInt32(0)), MaxUnavailable: ptr.To(intstr.FromInt32(1)),
			}},
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: new(int64),
					Containers:                    containers,
					// One Pod a node.
					Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
						RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
							LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
							TopologyKey:   corev1.LabelHostname,
						}},
					}},
				},
			},
		},
	}
}

// showEvents prints what each kubelet said of the images, and fails unless they were
// there every time.
func (s *show) showEvents(ctx context.Context, images ...string) error {
	var pods corev1.PodList
	if err := s.client.List(ctx, &pods, client.InNamespace("default"), client.MatchingLabels{"app": "demo"}); err != nil {
		return err
	}
	var events corev1.EventList
	if err := s.client.List(ctx, &events, client.InNamespace("default")); err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tNODE\tEVENT")
	present := 0
	for _, pod := range pods.Items {
		for _, event := range events.Items {
			about := slices.ContainsFunc(images, func(image string) bool { return strings.Contains(event.Message, image) })
			if event.InvolvedObject.UID != pod.UID || !about || event.Reason != "Pulled" && event.Reason != "Pulling" {
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%s\n", pod.Name, pod.Spec.NodeName, event.Message)
			if strings.Contains(event.Message, presentMessage) {
				present++
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if want := len(s.Nodes) * len(images); present != want {
		return fmt.Errorf("%d times a kubelet said that an image was %q, wanted %d", present, presentMessage, want)
	}
	return nil
}
