// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
	"github.com/sluice-dev/sluice/internal/policy"
)

const (
	// newNamespaceWait is how long a namespace may be missing from the cache. It exists, because
	// the API server rejects objects of other namespaces, so the cache will have it soon.
	newNamespaceWait = 2 * time.Second
	// newNamespaceLook is the time between two looks at the cache.
	newNamespaceLook = 20 * time.Millisecond
)

// imagePrefetchHandler checks what an ImagePrefetch says of nodes, and asks the policies of its
// namespace about it.
type imagePrefetchHandler struct {
	decoder  admission.Decoder
	cache    client.Reader
	fallback policy.Default
}

// Handle rejects an ImagePrefetch that is not valid or that policies deny, and lists each reason. Of an
// update it looks at what changes: what is stored may have become invalid or denied since.
func (h *imagePrefetchHandler) Handle(ctx context.Context, req admission.Request) admission.Response {
	var prefetch, stored v1alpha1.ImagePrefetch
	if err := h.decoder.Decode(req, &prefetch); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode ImagePrefetch: %w", err))
	}
	if !prefetch.DeletionTimestamp.IsZero() {
		return admission.Allowed("")
	}
	if req.Operation == admissionv1.Update {
		if err := h.decoder.DecodeRaw(req.OldObject, &stored); err != nil {
			return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode the stored ImagePrefetch: %w", err))
		}
	}
	problems := imageprefetch.ValidatePlacement(&stored.Spec, &prefetch.Spec)
	if !policy.Unchanged(&stored.Spec, &prefetch.Spec) {
		denied, err := h.denied(ctx, req.Namespace, &prefetch.Spec)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		problems = append(problems, denied...)
	}
	if len(problems) > 0 {
		return invalid(req, problems)
	}
	return admission.Allowed("")
}

// denied is all that policies deny about a spec in the namespace.
func (h *imagePrefetchHandler) denied(ctx context.Context, in string, spec *v1alpha1.ImagePrefetchSpec) (field.ErrorList, error) {
	namespace, err := h.namespace(ctx, in)
	if err != nil {
		return nil, err
	}
	var policies v1alpha1.PrefetchPolicyList
	if err := h.cache.List(ctx, &policies, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list PrefetchPolicies in the cache: %w", err)
	}
	return policy.Evaluate(namespace, spec, policies.Items, h.fallback), nil
}

// namespace reads the namespace from the cache. It waits for one that was created a moment ago,
// such as by the same kubectl apply.
func (h *imagePrefetchHandler) namespace(ctx context.Context, name string) (policy.Namespace, error) {
	var namespace corev1.Namespace
	err := wait.PollUntilContextTimeout(ctx, newNamespaceLook, newNamespaceWait, true, func(ctx context.Context) (bool, error) {
		err := h.cache.Get(ctx, client.ObjectKey{Name: name}, &namespace)
		return err == nil, client.IgnoreNotFound(err)
	})
	if wait.Interrupted(err) {
		err = apierrors.NewNotFound(corev1.Resource("namespaces"), name)
	}
	if err != nil {
		return policy.Namespace{}, fmt.Errorf("find the labels of the namespace in the cache (try again): %w", err)
	}
	return policy.Namespace{Name: name, Labels: namespace.Labels}, nil
}
