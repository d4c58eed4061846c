// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"context"
	"errors"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// staleReader is a cache that shows no NodeImageSet while it is blind.
type staleReader struct {
	client.Client
	blind atomic.Bool
}

func (s *staleReader) wrap(c client.Client) client.Client {
	s.Client = c
	return s
}

func (s *staleReader) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	if _, ok := list.(*v1alpha1.NodeImageSetList); ok && s.blind.Load() {
		return nil
	}
	return s.Client.List(ctx, list, options...)
}

// rejectingWriter rejects the creation of the NodeImageSet of a node while rejects is set.
type rejectingWriter struct {
	client.Client
	node    string
	rejects atomic.Bool
}

func (w *rejectingWriter) wrap(c client.Client) client.Client {
	w.Client = c
	return w
}

func (w *rejectingWriter) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	if w.rejects.Load() && object.GetName() == w.node {
		sets := v1alpha1.SchemeGroupVersion.WithResource("nodeimagesets").GroupResource()
		return apierrors.NewForbidden(sets, w.node, errors.New("not now"))
	}
	return w.Client.Create(ctx, object, options...)
}

// lossyWriter loses the answer to the first create request.
type lossyWriter struct {
	client.Client
	lost atomic.Bool
}

func (w *lossyWriter) wrap(c client.Client) client.Client {
	w.Client = c
	return w
}

func (w *lossyWriter) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	err := w.Client.Create(ctx, object, options...)
	if err == nil && w.lost.CompareAndSwap(false, true) {
		return errors.New("connection reset by peer")
	}
	return err
}
