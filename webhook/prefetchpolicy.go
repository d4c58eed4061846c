// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"net/http"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/policy"
)

// prefetchPolicyHandler checks that a policy means what it says.
type prefetchPolicyHandler struct {
	decoder admission.Decoder
}

// Handle rejects a policy that is ambiguous, cannot match or does not parse, and lists each such
// part of it.
func (h *prefetchPolicyHandler) Handle(_ context.Context, req admission.Request) admission.Response {
	var object v1alpha1.PrefetchPolicy
	if err := h.decoder.Decode(req, &object); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode PrefetchPolicy: %w", err))
	}
	if errs := policy.Validate(&object.Spec); len(errs) > 0 {
		return invalid(req, errs)
	}
	return admission.Allowed("").WithWarnings(policy.Warnings(&object.Spec)...)
}
