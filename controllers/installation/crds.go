// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// ApplyCRDs creates or updates the CustomResourceDefinitions in the files. It replaces the spec of a
// definition, and does not merge it: a field that a new version leaves out must go, whoever wrote
// it. Objects of the kinds stay as they are.
func ApplyCRDs(ctx context.Context, c client.Client, files fs.FS) error {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return err
	}
	for _, name := range names {
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		wanted := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(content, &wanted.Object); err != nil {
			return fmt.Errorf("parse %s: %w", name, err)
		}
		if err := applyCRD(ctx, c, wanted); err != nil {
			return fmt.Errorf("apply CustomResourceDefinition %q: %w", wanted.GetName(), err)
		}
	}
	return nil
}

func applyCRD(ctx context.Context, c client.Client, wanted *unstructured.Unstructured) error {
	log := logr.FromContextOrDiscard(ctx).WithValues("name", wanted.GetName())
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		present := wanted.DeepCopy()
		err := c.Get(ctx, client.ObjectKeyFromObject(wanted), present)
		if apierrors.IsNotFound(err) {
			if err := c.Create(ctx, wanted.DeepCopy()); err != nil {
				return err
			}
			log.Info("Created CustomResourceDefinition")
			return nil
		}
		if err != nil {
			return err
		}
		next := present.DeepCopy()
		next.Object["spec"] = wanted.DeepCopy().Object["spec"]
		annotations := next.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		for key, value := range wanted.GetAnnotations() {
			annotations[key] = value
		}
		next.SetAnnotations(annotations)
		// If the update changed anything, so did the resource version.
		if err := c.Update(ctx, next); err != nil {
			return err
		}
		if next.GetResourceVersion() != present.GetResourceVersion() {
			log.Info("Updated CustomResourceDefinition")
		}
		return nil
	})
}
