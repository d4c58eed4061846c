// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// hashLength is in hexadecimal digits: short enough to be read in a column, long
// enough that two sets of images of one Deployment do not meet.
const hashLength = 16

// TemplateImages are the images that a Pod template needs, normalized and sorted. Names that
// do not parse stand as they are: they are different images to the kubelet, too, and
// no ImagePrefetch can list them.
type TemplateImages []string

// ImagesOf are the images of the containers, init containers and image volumes.
func ImagesOf(pod *corev1.PodSpec) TemplateImages {
	var images TemplateImages
	add := func(name string) {
		if ref, err := imageref.Parse(name); err == nil {
			name = ref.String()
		}
		images = append(images, name)
	}
	for i := range pod.InitContainers {
		add(pod.InitContainers[i].Image)
	}
	for i := range pod.Containers {
		add(pod.Containers[i].Image)
	}
	for i := range pod.Volumes {
		if image := pod.Volumes[i].Image; image != nil {
			add(image.Reference)
		}
	}
	slices.Sort(images)
	return slices.Compact(images)
}

// Hash is the value of the hold label and of the released annotation.
func (t TemplateImages) Hash() string {
	sum := sha256.Sum256([]byte(strings.Join(t, "\n")))
	return hex.EncodeToString(sum[:])[:hashLength]
}
