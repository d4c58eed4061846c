// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// storedWithin is how long a Deployment that is created may take to be stored, and lookInterval
	// how often it is looked for meanwhile.
	storedWithin = 10 * time.Second
	lookInterval = 200 * time.Millisecond
	// maxAwaited bounds the Deployments that are looked for at a time. Of further ones no event tells:
	// their client has had the warning.
	maxAwaited = 16
)

// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get

// storedEvents records events on Deployments that are being written. kubectl describe finds them by
// the UID, which a Deployment that is created has only once it is stored.
type storedEvents struct {
	recorder events.EventRecorder
	live     client.Reader
	awaited  errgroup.Group
}

func newStoredEvents(recorder events.EventRecorder, live client.Reader) *storedEvents {
	s := &storedEvents{recorder: recorder, live: live}
	s.awaited.SetLimit(maxAwaited)
	return s
}

// warn records a Warning at once, or when the Deployment is stored. It does not block.
func (s *storedEvents) warn(deployment *appsv1.Deployment, reason, note string) {
	record := func(stored *appsv1.Deployment) {
		s.recorder.Eventf(stored, nil, corev1.EventTypeWarning, reason, "Admit", "%s", note)
	}
	if deployment.UID != "" {
		record(deployment)
		return
	}
	s.awaited.TryGo(func() error {
		if stored := s.await(client.ObjectKeyFromObject(deployment)); stored != nil {
			record(stored)
		}
		return nil
	})
}

// await returns a Deployment once it is stored; nil if it is not, because another webhook or
// validation rejects it.
func (s *storedEvents) await(key client.ObjectKey) *appsv1.Deployment {
	ctx, cancel := context.WithTimeout(context.Background(), storedWithin)
	defer cancel()
	stored := &appsv1.Deployment{}
	err := wait.PollUntilContextCancel(ctx, lookInterval, false, func(ctx context.Context) (bool, error) {
		err := s.live.Get(ctx, key, stored)
		return err == nil, client.IgnoreNotFound(err)
	})
	if err != nil {
		return nil
	}
	return stored
}
