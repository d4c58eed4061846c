// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"slices"
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestWhichTagsOtherImagePrefetchesMayKnow(t *testing.T) {
	for _, tt := range []struct {
		reason string
		runs   []string
		named  *v1alpha1.ImagePrefetch
		want   []string
	}{
		{"the named one lists it", []string{imageB}, prefetch(imageB), nil},
		{"however it is written", []string{"docker.io/library/nginx:1"}, prefetch("nginx:1"), nil},
		{"it lists another tag", []string{imageB}, prefetch(imageA), []string{imageB}},
		{"it lists one of two", []string{imageA, imageB}, prefetch(imageA), []string{imageB}},
		{"there is none", []string{imageB, "nginx"}, nil, []string{"docker.io/library/nginx:latest", imageB}},
		{"a digest needs nobody", []string{at("ghcr.io/org/app", imageB)}, nil, nil},
		{"nobody lists what does not parse", []string{"Not An Image"}, nil, nil},
	} {
		d := deployment(runs(tt.runs...))
		if got := TagsOfOthers(&d.Spec.Template.Spec, tt.named); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.reason, got, tt.want)
		}
	}
}

func TestTheTagsThatAnImagePrefetchLists(t *testing.T) {
	listed := prefetch(imageB, "nginx", at("ghcr.io/org/app", imageB), "Not An Image")
	if got, want := TagsListedBy(listed), []string{imageB, "docker.io/library/nginx:latest"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
