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

// setResult is the result of writing NodeImageSets.
type setResult struct {
	// errors are those of failed writes, by node. The next pass writes these again.
	errors map[string]error
	// retryAt is when the next pass must start because an object had changed; zero if none had.
	retryAt time.Time
}

func (s setResult) err() error {
	var all []error
	for _, node := range slices.Sorted(maps.Keys(s.errors)) {
		all = append(all, s.errors[node])
	}
	return errors.Join(all...)
}

// writeSets writes the NodeImageSets that a step changes. Writes that demote a seed come first, and if
// one of them fails, those that make a seed are left out. So a step that is written in part never
// has more seeds than one that is written in full.
func (r *Reconciler) writeSets(ctx context.Context, seen *observation, step plan.Step) setResult {
	var demotions, others []*setWrite
	for _, name := range slices.Sorted(maps.Keys(step.Sets)) {
		node := seen.nodes[name]
		if node == nil || node.foreignSet {
			continue // the event of its deletion starts the next pass
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

// sendSets makes several writes at a time, and returns those that succeeded.
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
			log.V(1).Info("Found NodeImageSet changed before it was written", "node", write.set.Name)
		default:
			result.errors[write.set.Name] = fmt.Errorf("write NodeImageSet %q: %w", write.set.Name, err)
		}
	}
	return done
}

// setWrite is the write of one NodeImageSet.
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

// do creates the object, or updates the version of it that was observed.
func (w *setWrite) do(ctx context.Context, c client.Client) error {
	if w.set.ResourceVersion == "" {
		return c.Create(ctx, w.set)
	}
	return c.Update(ctx, w.set)
}

// demotes reports whether the write takes the upstream for an image from the node.
func (w *setWrite) demotes() bool {
	return len(lost(w.before, w.set.Spec.ImageSet, v1alpha1.RegistryPolicyDefault)) > 0
}

// makesSeed reports whether the write gives the node the upstream for an image.
func (w *setWrite) makesSeed() bool {
	return len(gained(w.before, w.set.Spec.ImageSet, v1alpha1.RegistryPolicyDefault)) > 0
}

// reportsPresent reports whether the node's status said that it has the image.
func (w *setWrite) reportsPresent(image string) bool {
	return slices.ContainsFunc(w.set.Status.Images, func(answer v1alpha1.NodeImageStatus) bool {
		return answer.Name == image && answer.State == v1alpha1.ImagePresent
	})
}

// gained returns the images that have a policy in after, and had another or none in before.
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

// lost returns the images that had a policy in before, and have another or none in after.
func lost(before, after []v1alpha1.NodeImage, policy v1alpha1.RegistryPolicy) []string {
	return gained(after, before, policy)
}

// isStale reports whether a write failed because the object was no longer the one that was observed,
// so that the next pass must plan again.
func isStale(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

// mayBeStored reports whether the API server may have a version of the object that this controller
// does not know, for example because the answer to a write was lost. The next pass then reads back.
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

// forEach calls do with each item, up to concurrentWrites at a time, and returns the errors in the
// order of the items.
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
