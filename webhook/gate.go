// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

// gateHandler decides about writes of Deployments.
type gateHandler struct {
	decoder admission.Decoder
	cache   client.Reader
	cluster ClusterReader
	events  *storedEvents
	clock   clock.PassiveClock
	metrics *metrics
}

// Handle lets a write of a Deployment pass, begins or ends a hold in it, or rejects it.
func (h *gateHandler) Handle(ctx context.Context, req admission.Request) admission.Response {
	write, err := h.decode(req)
	if err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if write.NeedsCluster() {
		if err := h.observe(ctx, req.Namespace, &write); err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
	}
	decision := hold.Decide(write)
	if !ptr.Deref(req.DryRun, false) {
		h.metrics.decisions.WithLabelValues(string(decision.Outcome)).Inc()
		h.events.record(write, decision.Notices)
	}
	if len(decision.Rejected) > 0 {
		return invalid(req, decision.Rejected)
	}
	return patched(decision.Patch).WithWarnings(decision.Warnings...)
}

// observe reads the evidence from caches.
func (h *gateHandler) observe(ctx context.Context, namespace string, write *hold.Write) error {
	settings, _ := hold.SettingsOf(write.New)
	var named v1alpha1.ImagePrefetch
	switch err := h.cache.Get(ctx, client.ObjectKey{Namespace: namespace, Name: settings.Prefetch}, &named); {
	case err == nil:
		write.Prefetch = &named
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("get ImagePrefetch %q from the cache: %w", settings.Prefetch, err)
	}
	var err error
	write.Cluster, _, err = h.cluster.Read(ctx, write.New, write.Prefetch)
	return err
}

func (h *gateHandler) decode(req admission.Request) (hold.Write, error) {
	write := hold.Write{New: &appsv1.Deployment{}, Now: h.clock.Now()}
	if err := h.decoder.Decode(req, write.New); err != nil {
		return write, fmt.Errorf("decode Deployment: %w", err)
	}
	if req.Operation == admissionv1.Update {
		write.Old = &appsv1.Deployment{}
		if err := h.decoder.DecodeRaw(req.OldObject, write.Old); err != nil {
			return write, fmt.Errorf("decode the stored Deployment: %w", err)
		}
	}
	return write, nil
}

// patched admits the object with changes.
func patched(patch []hold.Operation) admission.Response {
	response := admission.Allowed("")
	if len(patch) == 0 {
		return response
	}
	document, err := json.Marshal(patch)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("encode the patch: %w", err))
	}
	response.Patch = document
	response.PatchType = ptr.To(admissionv1.PatchTypeJSONPatch)
	return response
}

// invalid rejects the object, with each error at its field.
func invalid(req admission.Request, errs field.ErrorList) admission.Response {
	status := apierrors.NewInvalid(schema.GroupKind{Group: req.Kind.Group, Kind: req.Kind.Kind}, req.Name, errs).Status()
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &status}}
}
