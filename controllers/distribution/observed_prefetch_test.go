// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/policy"
)

func TestPlanOfPrefetch(t *testing.T) {
	object := &v1alpha1.ImagePrefetch{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "app", UID: "u1", Generation: 2, Annotations: map[string]string{v1alpha1.RefreshAnnotation: "2"},
		},
		Spec: v1alpha1.ImagePrefetchSpec{
			Images:                  []v1alpha1.ImageReference{"nginx", "docker.io/library/nginx:latest", "ghcr.io/org/app:v1"},
			NodeSelector:            map[string]string{"disk": "fast"},
			NodeAffinity:            &corev1.NodeAffinity{},
			Tolerations:             []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Replicas:                ptr.To[int32](2),
			ImageDownloadRetryLimit: ptr.To[int32](0),
			Retention:               v1alpha1.RetentionBestEffort,
			ImagePullSecrets:        []v1alpha1.SecretReference{{Name: "pull"}},
		},
		Status: v1alpha1.ImagePrefetchStatus{Images: []v1alpha1.ImageStatus{
			// The second name was resolved for the present refresh already.
			{Name: "nginx", Digest: one, Refresh: "1"}, {Name: "docker.io/library/nginx:latest", Digest: two, Refresh: "2"},
			{Name: "ghcr.io/org/app:v1"}, {Name: "ghcr.io/org/gone:v1", Digest: one, Refresh: "1"},
		}},
	}
	want := plan.Prefetch{
		Key: "shop/app", Namespace: "shop", UID: "u1", Generation: 2, Refresh: "2",
		Images:       []string{"docker.io/library/nginx:latest", "ghcr.io/org/app:v1"},
		Resolved:     map[string]plan.Resolved{"docker.io/library/nginx:latest": {Digest: two, Refresh: "2"}},
		NodeSelector: map[string]string{"disk": "fast"},
		NodeAffinity: &corev1.NodeAffinity{},
		Tolerations:  []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Replicas:     ptr.To[int32](2),
		RetryLimit:   0,
		Retention:    v1alpha1.RetentionBestEffort,
		PullSecrets:  []v1alpha1.PullSecretSource{{Namespace: "shop", Name: "pull"}},
	}
	if diff := cmp.Diff(want, observePrefetch(object, &referenceMemo{}, true, nil).planPrefetch()); diff != "" {
		t.Error(diff)
	}
}

// An image that the spec writes in another way is no new image: its tag is not asked for again.
func TestResolvedOfAnImageWrittenOtherwise(t *testing.T) {
	object := &v1alpha1.ImagePrefetch{
		Spec:   v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{"docker.io/library/nginx:latest", "ghcr.io/org/app:v2"}},
		Status: v1alpha1.ImagePrefetchStatus{Images: []v1alpha1.ImageStatus{{Name: "ghcr.io/org/app:v1", Digest: two}, {Name: "nginx", Digest: one}}},
	}
	want := map[string]plan.Resolved{"docker.io/library/nginx:latest": {Digest: one}}
	if diff := cmp.Diff(want, observePrefetch(object, &referenceMemo{}, true, nil).resolved()); diff != "" {
		t.Error(diff)
	}
}

func TestWhichServiceAccountCounts(t *testing.T) {
	account := func(name string) []v1alpha1.PullSecretSource {
		return []v1alpha1.PullSecretSource{{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "shop", Name: name}}
	}
	for _, tt := range []struct {
		reason   string
		spec     v1alpha1.ImagePrefetchSpec
		endpoint bool
		want     []v1alpha1.PullSecretSource
	}{
		{"as for a Pod, the default one", v1alpha1.ImagePrefetchSpec{}, true, account("default")},
		{"the one that the spec names", v1alpha1.ImagePrefetchSpec{ServiceAccountName: "robot"}, true, account("robot")},
		{
			"as for a Pod, none beside secrets of its own",
			v1alpha1.ImagePrefetchSpec{ServiceAccountName: "robot", ImagePullSecrets: []v1alpha1.SecretReference{{Name: "pull"}}},
			true, []v1alpha1.PullSecretSource{{Namespace: "shop", Name: "pull"}},
		},
		{"agents cannot get its credentials", v1alpha1.ImagePrefetchSpec{ServiceAccountName: "robot"}, false, nil},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			object := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app"}, Spec: tt.spec}
			got := observePrefetch(object, &referenceMemo{}, tt.endpoint, nil)
			if diff := cmp.Diff(tt.want, got.planPrefetch().PullSecrets); diff != "" {
				t.Error(diff)
			}
			if got.blocker != nil {
				t.Errorf("it is blocked: %+v", got.blocker)
			}
		})
	}
}

func TestWhichImagesAreLocalToTheNodes(t *testing.T) {
	object := &v1alpha1.ImagePrefetch{Spec: v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{"app:v1", "nginx", "local.example.com/a/b:v1"}}}
	local, err := policy.ParseRepositories([]string{"docker.io/library/app", "local.example.com/**"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"docker.io/library/app:v1", "local.example.com/a/b:v1"}
	if diff := cmp.Diff(want, observePrefetch(object, &referenceMemo{}, true, local).planPrefetch().NodeLocal); diff != "" {
		t.Error(diff)
	}
}
