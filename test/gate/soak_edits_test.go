// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var tags = []string{"a", "b", "c", "d"}

func anyOf[T any](random *rand.Rand, all ...T) T { return all[random.IntN(len(all))] }

type randomEdit func(context.Context, subject, *rand.Rand) error

// edits are what people and programs do. An update carries the version it is based
// on, as kubectl's commands do.
var edits = map[string]randomEdit{
	"set image":   updated(func(d *appsv1.Deployment, r *rand.Rand) { setTag(d, anyOf(r, tags...)) }),
	"set image 2": updated(func(d *appsv1.Deployment, r *rand.Rand) { setTag(d, anyOf(r, tags...)) }),
	"set env": updated(func(d *appsv1.Deployment, r *rand.Rand) {
		d.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", Value: fmt.Sprint(r.Int())}}
	}),
	"restart": updated(func(d *appsv1.Deployment, r *rand.Rand) {
		metav1.SetMetaDataAnnotation(&d.Spec.Template.ObjectMeta, "kubectl.kubernetes.io/restartedAt", fmt.Sprint(r.Int()))
	}),
	"pause":           updated(func(d *appsv1.Deployment, _ *rand.Rand) { d.Spec.Paused = true }),
	"resume":          updated(func(d *appsv1.Deployment, _ *rand.Rand) { d.Spec.Paused = false }),
	"resume 2":        updated(func(d *appsv1.Deployment, _ *rand.Rand) { d.Spec.Paused = false }),
	"opt out":         annotated(v1alpha1.GateAnnotation, "skip"),
	"opt in":          annotated(v1alpha1.GateAnnotation, ""),
	"opt in 2":        annotated(v1alpha1.GateAnnotation, ""),
	"short timeout":   annotated(v1alpha1.HoldTimeoutAnnotation, "3s"),
	"default timeout": annotated(v1alpha1.HoldTimeoutAnnotation, ""),
	"hold on timeout": annotated(v1alpha1.OnTimeoutAnnotation, "Hold"),
	"let on timeout":  annotated(v1alpha1.OnTimeoutAnnotation, ""),
	"overwrite labels": updated(func(d *appsv1.Deployment, _ *rand.Rand) {
		d.Labels = map[string]string{"soak": "true"}
	}),
	"remove released": annotated(v1alpha1.ReleasedAnnotation, ""),
	"replace":         replaced(false),
	"replace paused":  replaced(true),
	"scale":           scaled,
	"undo":            undone,
	"server-side apply": func(ctx context.Context, s subject, r *rand.Rand) error {
		return s.serverSideApply(ctx, anyOf(r, tags...), nil)
	},
	"server-side apply, not paused": func(ctx context.Context, s subject, r *rand.Rand) error {
		paused := false
		return s.serverSideApply(ctx, anyOf(r, tags...), &paused)
	},
	"recreate": func(ctx context.Context, s subject, r *rand.Rand) error {
		tag := anyOf(r, tags...)
		if r.IntN(4) > 0 { // seldom
			return nil
		}
		if err := api.Delete(ctx, s.manifest(tag)); err != nil {
			return err
		}
		return api.Create(ctx, s.manifest(tag))
	},
	"prefetch ready":   prefetched(ready),
	"prefetch ready 2": prefetched(ready),
	"prefetch pulling": prefetched(pulling),
	"prefetch failing": prefetched(failing),
	"delete prefetch": func(ctx context.Context, s subject, _ *rand.Rand) error {
		return api.Delete(ctx, &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name}})
	},
}

var editNames = slices.Sorted(maps.Keys(edits))

func setTag(d *appsv1.Deployment, tag string) {
	d.Spec.Template.Spec.Containers[0].Image = repository + ":" + tag
}

func updated(change func(*appsv1.Deployment, *rand.Rand)) randomEdit {
	return func(ctx context.Context, s subject, r *rand.Rand) error {
		var d appsv1.Deployment
		get := api.Get(ctx, s.key(), &d)
		if get != nil {
			d = *s.manifest("a") // draws the same random numbers
		}
		change(&d, r)
		if get != nil {
			return get
		}
		return api.Update(ctx, &d)
	}
}

// annotated sets an annotation, or removes it if the value is empty.
func annotated(key, value string) randomEdit {
	return updated(func(d *appsv1.Deployment, _ *rand.Rand) {
		if value == "" {
			delete(d.Annotations, key)
			return
		}
		metav1.SetMetaDataAnnotation(&d.ObjectMeta, key, value)
	})
}

// replaced puts the manifest in the place of all that is stored.
func replaced(paused bool) randomEdit {
	return func(ctx context.Context, s subject, r *rand.Rand) error {
		d := s.manifest(anyOf(r, tags...))
		d.Spec.Paused = paused
		return api.Update(ctx, d)
	}
}

func scaled(ctx context.Context, s subject, r *rand.Rand) error {
	replicas := r.Int32N(4)
	var d appsv1.Deployment
	if err := api.Get(ctx, s.key(), &d); err != nil {
		return err
	}
	return api.SubResource("scale").Update(ctx, &d, client.WithSubResourceBody(&autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: replicas}}))
}

// undone does what kubectl rollout undo does: it brings back the template and the
// annotations of a ReplicaSet, and refuses what is paused.
func undone(ctx context.Context, s subject, r *rand.Rand) error {
	choice := r.IntN(1 << 20)
	var d appsv1.Deployment
	var sets appsv1.ReplicaSetList
	if err := api.Get(ctx, s.key(), &d); err != nil {
		return err
	}
	if err := api.List(ctx, &sets, client.InNamespace(s.namespace), client.MatchingLabels{"app": s.name}); err != nil {
		return err
	}
	if d.Spec.Paused || len(sets.Items) == 0 {
		return nil
	}
	slices.SortFunc(sets.Items, func(a, b appsv1.ReplicaSet) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	set := sets.Items[choice%len(sets.Items)]
	d.Spec.Template = *set.Spec.Template.DeepCopy()
	delete(d.Spec.Template.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	d.Annotations = maps.Clone(set.Annotations)
	for key := range d.Annotations {
		if len(key) > 10 && key[:10] == "deployment" {
			delete(d.Annotations, key)
		}
	}
	return api.Update(ctx, &d)
}

func (s subject) serverSideApply(ctx context.Context, tag string, paused *bool) error {
	d := s.manifest(tag)
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(d)
	if err != nil {
		return err
	}
	delete(content, "status")
	if paused != nil {
		if err := unstructured.SetNestedField(content, *paused, "spec", "paused"); err != nil {
			return err
		}
	}
	return api.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content}),
		client.FieldOwner("team"), client.ForceOwnership)
}

func prefetched(p progress) randomEdit {
	return func(ctx context.Context, s subject, r *rand.Rand) error {
		listed := slices.Clone(tags)
		r.Shuffle(len(listed), func(i, j int) { listed[i], listed[j] = listed[j], listed[i] })
		return s.setPrefetch(ctx, p, listed[:1+r.IntN(len(listed))]...)
	}
}

// setPrefetch makes the subject's ImagePrefetch list these versions, with a status.
// What was Ready with a spec stays so: images that are on nodes stay there.
func (s subject) setPrefetch(ctx context.Context, p progress, listed ...string) error {
	prefetch := v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name}}
	err := api.Get(ctx, s.key(), &prefetch)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	prefetch.Spec.Images = nil
	for _, tag := range listed {
		prefetch.Spec.Images = append(prefetch.Spec.Images, v1alpha1.ImageReference(repository+":"+tag))
	}
	if err != nil {
		err = api.Create(ctx, &prefetch)
	} else {
		err = api.Update(ctx, &prefetch)
	}
	if err != nil || isReady(&prefetch) {
		return err
	}
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, ObservedGeneration: prefetch.Generation, LastTransitionTime: metav1.Now()}
	prefetch.Status = v1alpha1.ImagePrefetchStatus{ObservedGeneration: prefetch.Generation, DesiredNodes: 12}
	p(&prefetch.Status, &condition)
	prefetch.Status.Conditions = []metav1.Condition{condition}
	return api.Status().Update(ctx, &prefetch)
}
