// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

// setResult is what became of the writes of a step.
type setResult struct {
	// errors are the errors by node name. The next pass tries again.
	errors map[string]error
	// retryAt is when to look again because an object had moved on; zero if none had.
	retryAt time.Time
}

func (s setResult) err() error {
	var all []error
	for _, node := range slices.Sorted(maps.Keys(s.errors)) {
		all = append(all, s.errors[node])
	}
	return errors.Join(all...)
}

// writeSets writes the NodeImageSets that a step changes. Those that take the upstream
// away from a node come first, and if one of them fails nobody is given it: a plan
// that is written in part never has more seeds than one written in full.
func (r *Reconciler) writeSets(ctx context.Context, seen *observation, step plan.Step) setResult {
	var demotions, others []*setWrite
	for _, name := range slices.Sorted(maps.Keys(step.Sets)) {
		node := seen.nodes[name]
		if node == nil || node.foreignSet {
			continue // deleted events bring the next pass
		}
		write := newSetWrite(node, step.Sets[name])
		if write.demotes() {
			demotions = append(demotions, write)
		} else {
			others = append(others, write)
		}
	}
	result := setResult{errors: map[string]error{}}
	done := r.sendSets(ctx, demotions, &result)
	if len(done) < len(demotions) {
		others = slices.DeleteFunc(others, (*setWrite).makesSeed)
	}
	done = append(done, r.sendSets(ctx, others, &result)...)
	r.Metrics.countAssignments(done, seen.isWanted)
	return result
}

// sendSets writes several NodeImageSets at a time, and returns those that went through.
func (r *Reconciler) sendSets(ctx context.Context, writes []*setWrite, result *setResult) []*setWrite {
	errs := forEach(writes, func(w *setWrite) error { return w.do(ctx, r.Client) })
	log := logf.FromContext(ctx)
	var done []*setWrite
	for i, write := range writes {
		if mayBeStored(errs[i]) {
			r.synced = false
		}
		switch err := errs[i]; {
		case err == nil:
			r.writtenSets.record(write.set, r.Clock.Now())
			done = append(done, write)
			log.V(1).Info("Wrote NodeImageSet", "node", write.set.Name, "images", len(write.set.Spec.ImageSet))
		case isStale(err):
			result.retryAt = r.Clock.Now().Add(passInterval)
			log.V(1).Info("Found NodeImageSet changed meanwhile", "node", write.set.Name)
		default:
			result.errors[write.set.Name] = fmt.Errorf("write NodeImageSet %q: %w", write.set.Name, err)
		}
	}
	return done
}

// setWrite is one NodeImageSet to be written.
type setWrite struct {
	before []v1alpha1.NodeImage
	set    *v1alpha1.NodeImageSet
}

func newSetWrite(node *observedNode, images []v1alpha1.NodeImage) *setWrite {
	write := &setWrite{}
	if node.set == nil {
		write.set = &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: node.planNode.Name}}
	} else {
		write.before = node.set.Spec.ImageSet
		write.set = node.set.DeepCopy()
	}
	write.set.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node", Name: node.planNode.Name, UID: node.uid,
	}}
	write.set.Spec = v1alpha1.NodeImageSetSpec{NodeName: node.planNode.Name, ImageSet: images}
	return write
}

// do creates the object, or updates it if it is still the one that was seen.
func (w *setWrite) do(ctx context.Context, c client.Client) error {
	if w.set.ResourceVersion == "" {
		return c.Create(ctx, w.set)
	}
	return c.Update(ctx, w.set)
}

// demotes tells whether a node that may use the upstream for an image no
// longer may.
func (w *setWrite) demotes() bool {
	return len(lost(w.before, w.set.Spec.ImageSet, v1alpha1.RegistryPolicyDefault)) > 0
}

// makesSeed tells whether a node that may not use the upstream for an image shall.
func (w *setWrite) makesSeed() bool {
	return len(gained(w.before, w.set.Spec.ImageSet, v1alpha1.RegistryPolicyDefault)) > 0
}

// reportsPresent tells whether the node said, when last seen, that it holds the image.
func (w *setWrite) reportsPresent(image string) bool {
	return slices.ContainsFunc(w.set.Status.Images, func(answer v1alpha1.NodeImageStatus) bool {
		return answer.Name == image && answer.State == v1alpha1.ImagePresent
	})
}

// gained are the images that have a policy in after and had none, or another, in before.
func gained(before, after []v1alpha1.NodeImage, policy v1alpha1.RegistryPolicy) []string {
	had := make(map[string]bool, len(before))
	for _, image := range before {
		had[image.Name] = image.RegistryPolicy == policy
	}
	var names []string
	for _, image := range after {
		if image.RegistryPolicy == policy && !had[image.Name] {
			names = append(names, image.Name)
		}
	}
	return names
}

// lost are the images that have a policy in before and have none, or another, in after.
func lost(before, after []v1alpha1.NodeImage, policy v1alpha1.RegistryPolicy) []string {
	return gained(after, before, policy)
}

// isStale tells whether the object is not what was seen any more, so that the next
// pass must decide anew.
func isStale(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

// mayBeStored tells whether the API server may hold a version that neither the cache nor
// this controller knows of, because the answer to a write was lost, say. The next pass
// then asks it.
func mayBeStored(err error) bool {
	if err == nil {
		return false
	}
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonUnknown, metav1.StatusReasonAlreadyExists, metav1.StatusReasonTimeout,
		metav1.StatusReasonServerTimeout, metav1.StatusReasonInternalError, metav1.StatusReasonServiceUnavailable:
		return true
	}
	return false
}

// forEach does something to each item, a bounded number at a time, and returns the
// errors in the order of the items.
func forEach[T any](items []T, do func(T) error) []error {
	errs := make([]error, len(items))
	slots := make(chan struct{}, concurrentWrites)
	var wait sync.WaitGroup
	for i, item := range items {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			errs[i] = do(item)
		})
	}
	wait.Wait()
	return errs
}
