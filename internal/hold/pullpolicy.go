// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// pullWarnings tell of images for which a Pod asks the registry even when they are on
// the node: then prefetching spares the bytes but not the dependency.
func (w Write) pullWarnings() []string {
	pod := &w.New.Spec.Template.Spec
	always := sets.New[string]()
	note := func(image string, policy corev1.PullPolicy) {
		if policy == corev1.PullAlways || policy == "" && impliesAlways(image) {
			always.Insert(image)
		}
	}
	for _, containers := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range containers {
			note(containers[i].Image, containers[i].ImagePullPolicy)
		}
	}
	for i := range pod.Volumes {
		if image := pod.Volumes[i].Image; image != nil {
			note(image.Reference, image.PullPolicy)
		}
	}
	if len(always) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("imagePullPolicy Always: each Pod asks the registry for %s, also where the image is on the node; set IfNotPresent, and a tag other than latest",
		list(sets.List(always)))}
}

// impliesAlways is the API server's default for a pull policy that is not set.
func impliesAlways(image string) bool {
	ref, err := imageref.Parse(image)
	return err == nil && ref.Tag() == "latest"
}
