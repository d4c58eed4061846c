// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// freshTag is one that no Deployment has had: what rolls out with it was let through
// now, and not once before.
func freshTag(random *rand.Rand) string { return fmt.Sprintf("v%08x", random.Uint32()) }

type randomEdit func(context.Context, subject, *rand.Rand) error

// edits are what people and programs do. An update carries the version it is based
// on, as kubectl's commands do.
var edits = map[string]randomEdit{
	"set image":           updated(func(d *appsv1.Deployment, r *rand.Rand) { setTag(d, freshTag(r)) }),
	"set image 2":         updated(func(d *appsv1.Deployment, r *rand.Rand) { setTag(d, freshTag(r)) }),
	"prefetch, set image": prefetchedFirst,
	"set image back":      setBack,
	"strategy Recreate": updated(func(d *appsv1.Deployment, _ *rand.Rand) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}),
	"strategy RollingUpdate": updated(func(d *appsv1.Deployment, _ *rand.Rand) { d.Spec.Strategy = appsv1.DeploymentStrategy{} }),
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
	"ungate":          annotated(v1alpha1.PrefetchAnnotation, ""),
	"gate":            gatedAgain,
	"gate 2":          gatedAgain,
	"short timeout":   annotated(v1alpha1.HoldTimeoutAnnotation, "3s"),
	"default timeout": annotated(v1alpha1.HoldTimeoutAnnotation, ""),
	"hold on timeout": annotated(v1alpha1.OnTimeoutAnnotation, "Hold"),
	"let on timeout":  annotated(v1alpha1.OnTimeoutAnnotation, ""),
	"overwrite labels": updated(func(d *appsv1.Deployment, _ *rand.Rand) {
		d.Labels = map[string]string{"soak": "true"}
	}),
	"overwrite labels and annotations": updated(func(d *appsv1.Deployment, r *rand.Rand) {
		d.Labels = map[string]string{"soak": "true"}
		maps.DeleteFunc(d.Annotations, func(key, _ string) bool { return key != v1alpha1.PrefetchAnnotation })
		setTag(d, freshTag(r))
	}),
	"overwrite all metadata": updated(func(d *appsv1.Deployment, _ *rand.Rand) {
		d.Labels, d.Annotations = map[string]string{"soak": "true"}, nil
	}),
	"remove released":           annotated(v1alpha1.ReleasedAnnotation, ""),
	"replace":                   replaced(false),
	"replace paused":            replaced(true),
	"scale":                     scaled,
	"undo":                      undone,
	"client-side apply":         applied(subject.clientSideApply),
	"client-side apply, paused": applied(subject.clientSideApply, thatPauses),
	"client-side apply, paused and opted out": applied(subject.clientSideApply, thatPauses, thatOptsOut),
	"server-side apply":                       applied(subject.serverSideApply),
	"server-side apply, not paused":           applied(subject.serverSideApplyNotPaused),
	"server-side apply, paused":               applied(subject.serverSideApply, thatPauses),
	"server-side apply, paused and opted out": applied(subject.serverSideApply, thatPauses, thatOptsOut),
	"create again":                            createdAgain(func(*appsv1.Deployment) {}),
	"create from an export": createdAgain(func(d *appsv1.Deployment) {
		metav1.SetMetaDataAnnotation(&d.ObjectMeta, v1alpha1.ReleasedAnnotation, imagesHash(d))
	}),
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
		d := s.manifest(freshTag(r))
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
	// Those of a Deployment that had the name before may still be there.
	sets.Items = slices.DeleteFunc(sets.Items, func(set appsv1.ReplicaSet) bool { return !metav1.IsControlledBy(&set, &d) })
	slices.SortFunc(sets.Items, func(a, b appsv1.ReplicaSet) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	if d.Spec.Paused || len(sets.Items) == 0 {
		return nil
	}
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

// setBack sets the image that runs, or that of a rollout under way.
func setBack(ctx context.Context, s subject, _ *rand.Rand) error {
	var d appsv1.Deployment
	var sets appsv1.ReplicaSetList
	if err := api.Get(ctx, s.key(), &d); err != nil {
		return err
	}
	if err := api.List(ctx, &sets, client.InNamespace(s.namespace), client.MatchingLabels{"app": s.name}); err != nil {
		return err
	}
	sets.Items = slices.DeleteFunc(sets.Items, func(set appsv1.ReplicaSet) bool { return !metav1.IsControlledBy(&set, &d) })
	if len(sets.Items) == 0 {
		return nil
	}
	newest := slices.MaxFunc(sets.Items, func(a, b appsv1.ReplicaSet) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	d.Spec.Template.Spec.Containers[0].Image = newest.Spec.Template.Spec.Containers[0].Image
	return api.Update(ctx, &d)
}

func gatedAgain(ctx context.Context, s subject, r *rand.Rand) error {
	return annotated(v1alpha1.PrefetchAnnotation, s.name)(ctx, s, r)
}

// createdAgain deletes the Deployment and creates another under its name.
func createdAgain(change func(*appsv1.Deployment)) randomEdit {
	return func(ctx context.Context, s subject, r *rand.Rand) error {
		d := s.manifest(freshTag(r))
		if r.IntN(4) > 0 { // seldom
			return nil
		}
		change(d)
		if err := api.Delete(ctx, d.DeepCopy()); err != nil {
			return err
		}
		return api.Create(ctx, d)
	}
}

// prefetched has an ImagePrefetch of some image, and mostly of the Deployment's.
func prefetched(p progress) randomEdit {
	return func(ctx context.Context, s subject, r *rand.Rand) error {
		listed := []string{freshTag(r)}
		if r.IntN(4) > 0 {
			tag, err := s.tag(ctx)
			if err != nil {
				return err
			}
			listed = append(listed, tag)
		}
		return s.setPrefetch(ctx, p, listed...)
	}
}

// prefetchedFirst changes to an image that is there already.
func prefetchedFirst(ctx context.Context, s subject, r *rand.Rand) error {
	tag := freshTag(r)
	if err := s.setPrefetch(ctx, ready, tag); err != nil {
		return err
	}
	return updated(func(d *appsv1.Deployment, _ *rand.Rand) { setTag(d, tag) })(ctx, s, r)
}

// tag is that of the image which the Deployment is to run.
func (s subject) tag(ctx context.Context) (string, error) {
	var d appsv1.Deployment
	if err := api.Get(ctx, s.key(), &d); err != nil {
		return "", err
	}
	_, tag, _ := strings.Cut(d.Spec.Template.Spec.Containers[0].Image, ":")
	return tag, nil
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
	prefetch.Status = v1alpha1.ImagePrefetchStatus{ObservedGeneration: prefetch.Generation, DesiredNodes: 12, Images: resolvedTo(listed...)}
	p(&prefetch.Status, &condition)
	prefetch.Status.Conditions = []metav1.Condition{condition}
	return api.Status().Update(ctx, &prefetch)
}
