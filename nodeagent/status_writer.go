// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	applyv1alpha1 "github.com/sluice-dev/sluice/api/applyconfiguration/api/v1alpha1"
	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// FieldOwner is the agent's name in managedFields.
const FieldOwner = "sluice-agent"

// NewStatusWriter returns a StatusWriter that uses server-side apply. The agent owns the whole
// status and sends all of it each time, so it needs no read and has no conflicts.
func NewStatusWriter(c client.Client, nodeName string) StatusWriter {
	return &statusWriter{client: c, nodeName: nodeName}
}

type statusWriter struct {
	client   client.Client
	nodeName string
}

func (w *statusWriter) WriteStatus(ctx context.Context, uid types.UID, status v1alpha1.NodeImageSetStatus) error {
	configuration := &applyv1alpha1.NodeImageSetStatusApplyConfiguration{}
	raw, err := json.Marshal(status)
	if err == nil {
		err = json.Unmarshal(raw, configuration)
	}
	if err != nil {
		return fmt.Errorf("convert status: %w", err)
	}
	set := applyv1alpha1.NodeImageSet(w.nodeName).WithUID(uid).WithStatus(configuration)
	err = w.client.Status().Apply(ctx, set, client.FieldOwner(FieldOwner), client.ForceOwnership)
	// A conflict means another UID: the object was deleted and made again. The watch will bring the
	// new one.
	if err = client.IgnoreNotFound(err); apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("apply status of NodeImageSet %q: %w", w.nodeName, err)
	}
	return nil
}
