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

	"github.com/sluice-dev/sluice/internal/hold"
)

// looks are when it is looked whether a write is stored: soon, and less and less often, for some
// seconds. A write that another webhook or validation rejects never is.
var looks = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 8}

// maxAwaited bounds the writes that are looked for at a time. Of further ones no event tells: their
// client has had the warning.
const maxAwaited = 64

// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get

// storedEvents records events on Deployments that are being written, once they are stored: another
// webhook or validation may still reject them, and one that is created has no UID yet, by which
// kubectl describe finds its events.
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

// record records notices about a write when that is stored. It does not block.
func (s *storedEvents) record(write hold.Write, notices []hold.Notice) {
	if len(notices) == 0 {
		return
	}
	s.awaited.TryGo(func() error {
		stored := s.await(write)
		if stored == nil {
			return nil
		}
		for _, n := range notices {
			kind := corev1.EventTypeNormal
			if n.Warning {
				kind = corev1.EventTypeWarning
			}
			s.recorder.Eventf(stored, nil, kind, n.Reason, "Admit", "%s", n.Note)
		}
		return nil
	})
}

// await returns the Deployment once the write, or a later one, is stored; nil if it is not.
func (s *storedEvents) await(write hold.Write) *appsv1.Deployment {
	stored := &appsv1.Deployment{}
	err := wait.ExponentialBackoffWithContext(context.Background(), looks, func(ctx context.Context) (bool, error) {
		err := s.live.Get(ctx, client.ObjectKeyFromObject(write.New), stored)
		return err == nil && (write.Old == nil || stored.ResourceVersion != write.Old.ResourceVersion), client.IgnoreNotFound(err)
	})
	if err != nil {
		return nil
	}
	return stored
}
