// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestHashIsOverWhatThePodNeeds(t *testing.T) {
	pod := func(edit func(*corev1.PodSpec)) string {
		spec := &corev1.PodSpec{Containers: containers(imageA)}
		if edit != nil {
			edit(spec)
		}
		return ImagesOf(spec).Hash()
	}
	plain := pod(nil)
	for _, tt := range []struct {
		reason string
		edit   func(*corev1.PodSpec)
		same   bool
	}{
		{"another container", func(s *corev1.PodSpec) { s.Containers = containers(imageA, imageB) }, false},
		{"an init container", func(s *corev1.PodSpec) { s.InitContainers = containers(imageB) }, false},
		{"an image volume", func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: imageB}}}}
		}, false},
		{"another volume", func(s *corev1.PodSpec) { s.Volumes = []corev1.Volume{{Name: "v"}} }, true},
		{"the same image twice", func(s *corev1.PodSpec) { s.InitContainers = containers(imageA) }, true},
		{"a name that does not parse", func(s *corev1.PodSpec) { s.Containers = containers(imageA, "NO IMAGE") }, false},
	} {
		if got := pod(tt.edit) == plain; got != tt.same {
			t.Errorf("%s: same hash %t, want %t", tt.reason, got, tt.same)
		}
	}
	if hashOf("nginx") != hashOf("docker.io/library/nginx:latest") {
		t.Error("the same image under two names has two hashes")
	}
	if hashOf(imageA, imageB) != hashOf(imageB, imageA) {
		t.Error("the order of containers matters")
	}
}
