// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"math/rand/v2"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// applied applies the manifest with a new image, in one way or the other.
func applied(apply func(subject, context.Context, *appsv1.Deployment) error, changes ...func(*appsv1.Deployment)) randomEdit {
	return func(ctx context.Context, s subject, r *rand.Rand) error {
		d := s.manifest(freshTag(r))
		for _, change := range changes {
			change(d)
		}
		return apply(s, ctx, d)
	}
}

func thatPauses(d *appsv1.Deployment) { d.Spec.Paused = true }

func thatOptsOut(d *appsv1.Deployment) {
	metav1.SetMetaDataAnnotation(&d.ObjectMeta, v1alpha1.GateAnnotation, v1alpha1.GateSkip)
}

func (s subject) serverSideApply(ctx context.Context, d *appsv1.Deployment) error {
	content, err := contentOf(d)
	if err != nil {
		return err
	}
	return api.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content}),
		client.FieldOwner("team"), client.ForceOwnership)
}

func (s subject) serverSideApplyNotPaused(ctx context.Context, d *appsv1.Deployment) error {
	content, err := contentOf(d)
	if err != nil {
		return err
	}
	if err := unstructured.SetNestedField(content, false, "spec", "paused"); err != nil {
		return err
	}
	return api.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content}),
		client.FieldOwner("team"), client.ForceOwnership)
}

// clientSideApply does what kubectl apply does: it sends what the manifest changes in
// what is stored, and removes what the last manifest had and this one has not.
func (s subject) clientSideApply(ctx context.Context, d *appsv1.Deployment) error {
	content, err := contentOf(d)
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(content)
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&d.ObjectMeta, corev1.LastAppliedConfigAnnotation, string(manifest))
	if content, err = contentOf(d); err != nil {
		return err
	}
	var stored appsv1.Deployment
	switch err := api.Get(ctx, s.key(), &stored); {
	case apierrors.IsNotFound(err):
		return api.Create(ctx, d)
	case err != nil:
		return err
	}
	modified, err := json.Marshal(content)
	if err != nil {
		return err
	}
	current, err := json.Marshal(&stored)
	if err != nil {
		return err
	}
	patch, err := jsonmergepatch.CreateThreeWayJSONMergePatch([]byte(stored.Annotations[corev1.LastAppliedConfigAnnotation]), modified, current)
	if err != nil {
		return err
	}
	return api.Patch(ctx, &stored, client.RawPatch(types.MergePatchType, patch))
}

// contentOf is a manifest as its owner writes it.
func contentOf(d *appsv1.Deployment) (map[string]any, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(d)
	delete(content, "status")
	return content, err
}
