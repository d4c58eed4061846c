// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestImagesAreFoundByTheirRepository(t *testing.T) {
	for name, want := range map[string]string{
		"ghcr.io/org/app:v1":            "ghcr.io/org/app",
		at("registry:5000/app", imageB): "registry:5000/app",
		"registry:5000/app:v1":          "registry:5000/app",
		"docker.io/library/nginx:v1":    "docker.io/library/nginx",
	} {
		set := &v1alpha1.NodeImageSet{Spec: v1alpha1.NodeImageSetSpec{ImageSet: []v1alpha1.NodeImage{{Name: name}}}}
		if got := ImagesOn(set)[want]; len(got) != 1 || got[0].Name != name {
			t.Errorf("%s: %+v in %s", name, got, want)
		}
	}
}

func TestImagesOn(t *testing.T) {
	joinedAt := metav1.NewTime(now)
	asked := func(edit func(*v1alpha1.NodeImage)) v1alpha1.NodeImageSetSpec {
		image := v1alpha1.NodeImage{Name: imageB, Digest: "sha256:b", RegistryPolicy: v1alpha1.RegistryPolicyMirror}
		edit(&image)
		return v1alpha1.NodeImageSetSpec{ImageSet: []v1alpha1.NodeImage{image}}
	}
	asPeer := asked(func(*v1alpha1.NodeImage) {})
	asSeed := asked(func(i *v1alpha1.NodeImage) { i.RegistryPolicy = v1alpha1.RegistryPolicyDefault })
	reported := func(state v1alpha1.ImageState, reason string) v1alpha1.NodeImageStatus {
		return v1alpha1.NodeImageStatus{Name: imageB, Digest: "sha256:b", State: state, Reason: reason}
	}
	for _, tt := range []struct {
		reason string
		spec   v1alpha1.NodeImageSetSpec
		status v1alpha1.NodeImageStatus
		want   Image
	}{
		{"nothing is reported yet", asPeer, v1alpha1.NodeImageStatus{Name: imageC}, Image{Name: imageB, Digest: "sha256:b"}},
		{"it comes", asPeer, reported(v1alpha1.ImagePulling, ""), Image{Name: imageB, Digest: "sha256:b"}},
		{"it is there", asPeer, reported(v1alpha1.ImagePresent, ""), Image{Name: imageB, Digest: "sha256:b", Present: "sha256:b"}},
		{
			reason: "the registry refused the seed",
			spec:   asSeed,
			status: reported(v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized),
			want:   Image{Name: imageB, Digest: "sha256:b", Failed: true},
		},
		{
			reason: "the registry did not answer the seed",
			spec:   asSeed,
			status: reported(v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable),
			want:   Image{Name: imageB, Digest: "sha256:b", Failed: true},
		},
		{
			reason: "the disk of a peer is full",
			spec:   asPeer,
			status: reported(v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk),
			want:   Image{Name: imageB, Digest: "sha256:b", Failed: true},
		},
		{
			reason: "the mirror did not serve a peer, which is asked again",
			spec:   asPeer,
			status: reported(v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror),
			want:   Image{Name: imageB, Digest: "sha256:b"},
		},
		{
			reason: "the node began to take Pods while the prefetch ran",
			spec:   asked(func(i *v1alpha1.NodeImage) { i.JoinedAt = &joinedAt }),
			status: reported(v1alpha1.ImagePulling, ""),
			want:   Image{Name: imageB, Digest: "sha256:b", JoinedAt: now},
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			set := &v1alpha1.NodeImageSet{Spec: tt.spec, Status: v1alpha1.NodeImageSetStatus{Images: []v1alpha1.NodeImageStatus{tt.status}}}
			if got := ImagesOn(set)["ghcr.io/org/app"]; len(got) != 1 || got[0] != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
	withdrawn := &v1alpha1.NodeImageSet{Status: v1alpha1.NodeImageSetStatus{Images: []v1alpha1.NodeImageStatus{reported(v1alpha1.ImagePresent, "")}}}
	if got := ImagesOn(withdrawn); len(got) > 0 {
		t.Errorf("%+v: what is withdrawn may be deleted", got)
	}
}
